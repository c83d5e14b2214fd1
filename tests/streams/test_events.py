"""The stored events: fenced, numbered, bounded, read by index."""

import asyncio
import base64
import os
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from pydantic_core import to_json

from app.db.engine import Database
from app.db.ids import uuid7
from app.db.tables.contexts import Prompt
from app.db.tables.results import SettledColumns
from app.dispatch import events as writing
from app.dispatch.events import EventWriter
from app.dispatch.run import Run
from app.queue import events
from app.queue.events import EventStore, Spoken
from app.queue.store import QueueStore
from app.queue.ticket import Claim, Outcome, Settlement, Status, Submission
from app.tasks.chunks import Chunk
from tests.queue.test_plans import check, nodes, plan
from tests.queue.test_plans import history as history
from tests.service import Service, eventually
from tests.streams.follower import Follower, messages


def said(claim: Claim, text: str, at: int = 0, sequence: int | None = None) -> Spoken:
    return Spoken(claim.id, claim.token, sequence, to_json([{"index": 0, "at": at, "text": text}]).decode())


def settlement(claim: Claim, text: str) -> Settlement:
    made = SettledColumns(text, None, "stop")
    return Settlement(claim.id, claim.token, Status.COMPLETED, Outcome.COMPLETED, "s", made)


async def claimed(store: QueueStore, lease_seconds: float = 30.0) -> Claim:
    """The next result, submitted first."""
    context, now = uuid7(), datetime.now(UTC)
    await store.create_context(context, Prompt("x"), now, None)
    await store.submit([Submission(uuid7(), context, "m", {}, 0, now, now, streamed=True)])
    (claim,) = (await store.claim([("m", "s", None)], lease_seconds=lease_seconds, dispatcher="d")).claims
    return claim


async def stored(database: Database, id_: UUID) -> list[tuple[int, str]]:
    (found,) = await EventStore(database).read([(id_, -1)])
    return [(sequence, "".join(choice["text"] for choice in choices)) for sequence, choices in found.rows]


async def test_numbers_go_on_over_attempts(store: QueueStore, database: Database) -> None:
    first = await claimed(store, lease_seconds=0.05)
    writer = EventStore(database)
    assert await writer.write([said(first, "a")]) == {first.token: 0}
    assert await writer.write([said(first, "b", 1, 1)]) == {first.token: 1}

    async def again() -> Any:
        return (await store.claim([("m", "s", None)], lease_seconds=30, dispatcher="e")).claims

    (second,) = await eventually(again, "the lease ends")
    assert second.streamed
    assert await writer.write([said(first, "stale", 2, 2), said(second, "a")]) == {second.token: 2}
    assert await stored(database, first.id) == [(0, "a"), (1, "b"), (2, "a")]


async def test_what_is_written_twice_is_there_once(store: QueueStore, database: Database) -> None:
    claim = await claimed(store)
    writer = EventStore(database)
    await writer.write([said(claim, "a")])
    await writer.write([said(claim, "b", 1, 1)])
    assert await writer.write([said(claim, "b", 1, 1), said(claim, "c", 2, 2)]) == {claim.token: 2}
    assert await stored(database, claim.id) == [(0, "a"), (1, "b"), (2, "c")]


async def test_nothing_is_written_after_the_settle(store: QueueStore, database: Database) -> None:
    claim = await claimed(store)
    await store.settle([settlement(claim, "done")])
    assert await EventStore(database).write([said(claim, "late")]) == {}


async def test_no_event_slips_in_behind_a_settle_that_is_under_way(
    store: QueueStore, database: Database, database_url: str
) -> None:
    """An event under way holds off the settle, and one that meets a settle is left out without waiting."""
    claim = await claimed(store)
    connection = await asyncpg.connect(database_url)
    event = said(claim, "x")
    async with connection.transaction():
        arguments = ([event.id], [event.token], [None], [event.choices], False)
        assert await connection.fetch(events.WRITE, *arguments)
        settling = asyncio.create_task(store.settle([settlement(claim, "xy")]))

        async def waits() -> Any:
            return await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )

        # Inside a transaction the view is frozen unless asked not to be.
        await connection.execute("SET LOCAL stats_fetch_consistency = 'none'")
        await eventually(waits, "the settle waits for the event")
        assert not settling.done()
    assert await settling == {claim.id}
    assert await stored(database, claim.id) == [(0, "x")]

    other = await claimed(store)
    async with connection.transaction():
        await connection.execute("SELECT FROM results WHERE id = $1 FOR NO KEY UPDATE", other.id)
        async with asyncio.timeout(5):
            assert await EventStore(database).write([said(other, "x")]) == {}
    await connection.close()


async def test_a_long_stream_stores_fewer_rows_the_longer_it_gets(
    store: QueueStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "FREE_ROWS", 10)
    run = Run(await claimed(store), streamed=True)
    writer = EventWriter(EventStore(database))
    task = asyncio.create_task(writer.run())
    loop = asyncio.get_running_loop()
    started = loop.time()
    spoken = 0
    while loop.time() < started + 1.5:
        run.answer.add(Chunk([f"{spoken} "], [None]))
        spoken += 1
        writer.moved(run)
        await asyncio.sleep(0.005)

    async def all_stored() -> bool:
        return "".join(text for _, text in await stored(database, run.claim.id)) == "".join(run.answer.joined())

    await eventually(all_stored, "everything is stored")
    seconds = loop.time() - started
    task.cancel()
    rows = await stored(database, run.claim.id)
    assert [sequence for sequence, _ in rows] == list(range(len(rows)))
    assert 10 < len(rows) <= 10 + 1 + seconds / writing.SPARE_SECONDS


async def test_one_row_that_postgres_refuses_leaves_the_others(store: QueueStore, database: Database) -> None:
    good, bad = Run(await claimed(store), streamed=True), Run(await claimed(store), streamed=True)
    writer = EventWriter(EventStore(database))
    bad.answer.add(Chunk(["x"], [None], logprobs=[[{"1": {"decoded_token": "\x00"}}]]))
    good.answer.add(Chunk(["y\x00"], [None]))
    for run in (good, bad):
        writer.moved(run)
    task = asyncio.create_task(writer.run())

    async def there() -> Any:
        return await stored(database, good.claim.id)

    assert await eventually(there, "the good one is stored") == [(0, "y\ufffd")]

    async def given_up() -> bool:
        return not bad.streamed

    await eventually(given_up, "the bad one is given up")
    assert await stored(database, bad.claim.id) == []
    task.cancel()


async def test_a_read_is_bounded_by_bytes_and_leaves_nobody_out(store: QueueStore, database: Database) -> None:
    """Five results with three rows of 400 KB, one row above the bound, one result without any."""
    claims = [await claimed(store) for _ in range(7)]
    words = {claims[0].id: [events.BYTES_PER_READ * 2], claims[6].id: []}
    words |= {claim.id: [400_000] * 3 for claim in claims[1:6]}
    store_ = EventStore(database)
    for claim in claims:
        for sequence, size in enumerate(words[claim.id]):
            # Random, so that Postgres cannot compress it by much.
            await store_.write([said(claim, base64.b85encode(os.urandom(size * 4 // 5)).decode(), sequence=sequence)])
    cursors = {claim.id: -1 for claim in claims}
    seen: dict[UUID, list[int]] = {claim.id: [] for claim in claims}
    reads = 0
    while cursors:
        reads += 1
        found = await store_.read(list(cursors.items()))
        assert {each.id for each in found} == set(cursors)
        rows = [len(choices[0]["text"]) for each in found for _, choices in each.rows]
        assert len(rows) == 1 or sum(rows) <= events.BYTES_PER_READ
        for each in found:
            assert [sequence for sequence, _ in each.rows] == list(
                range(cursors[each.id] + 1, cursors[each.id] + 1 + len(each.rows))
            )
            seen[each.id] += [len(choices[0]["text"]) for _, choices in each.rows]
            cursors[each.id] += len(each.rows)
            if not each.more:
                del cursors[each.id]
    assert seen == words
    assert reads <= 9


async def test_a_follower_that_does_not_read_holds_up_nobody(service: Service) -> None:
    """Megabytes of it: more than the sockets between take."""
    id_ = await service.send(parameters={"max_tokens": 240, "ignore_eos": True, "n": 16, "logprobs": 20}, stream=True)
    stuck = Follower(id_)
    async with service.client.stream("GET", f"/results/{id_}/stream") as answer:
        reading = messages(answer)
        stuck.seen.append(await anext(reading))
        (await Follower(id_).follow(service)).check()
        async for message in reading:
            if message.event == "delta":
                stuck.seen.append(message)
            else:
                stuck.result = message.data
    assert len(str(stuck.check())) > 4_000_000


async def test_the_statements_stay_on_their_indexes(history: Any) -> None:
    ids = await history.fetch("SELECT id FROM results WHERE status = 'pending' LIMIT 20")
    await history.execute(
        "INSERT INTO result_events (result_id, sequence, attempt, choices, created_at)"
        " SELECT id, n, 1, '[]', now() - interval '1 hour' FROM"
        " (SELECT id FROM results ORDER BY id LIMIT 2000) r, generate_series(0, 99) n"
    )
    await history.execute("VACUUM ANALYZE result_events")
    given = [row["id"] for row in ids]
    check(await plan(history, events.READ, given, [-1] * 20), "result_events_pkey", 20)
    check(await plan(history, events.FOLLOW, given[0], 0, 600.0), "results_by_owner", 2)
    written = await plan(history, events.WRITE, given, [uuid4()] * 20, [0] * 20, ["1"] * 20, True)
    check(written, "results_pkey", 20)
    dropped = await plan(history, events.DROP, datetime.fromtimestamp(0, UTC), 600.0)
    used = {node["Index Name"] for node in nodes(dropped) if "Index Name" in node}
    assert {"result_events_age", "result_events_pkey"} <= used
    assert not [node for node in nodes(dropped) if node["Node Type"] == "Seq Scan"]
    await history.execute("TRUNCATE result_events")
