"""The search in tickets: what the index of words and properties finds is what looking at every ticket finds."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.db.engine import Database
from app.db.ids import FIRST_ID, lowest_at, uuid7
from app.db.tables.contexts import Prompt
from app.dispatch.janitor import add_words
from app.queue.store import QueueStore
from app.queue.ticket import Submission
from app.queue.words import SPANS, Wanted, WordStore
from app.services import ticket_words
from app.services.callers import Caller
from app.services.ticket_list import Counted, Search, State, TicketList
from app.services.ticket_words import TicketWords
from tests.service import Service, eventually

ME, OTHER = Caller(0), Caller(1)
CHAT = [
    {"role": "system", "content": "Be brief"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "A heron?"}, {"type": "image_url", "image_url": "data:goose"}],
    },
]


class Tickets:
    """Makes tickets in any state, each some time ago."""

    def __init__(self, rows: Any, store: QueueStore) -> None:
        self._rows, self._store = rows, store

    async def make(
        self, prompt: Prompt, output: str | None = None, *, ago: float = 60.0, metadata: Any = None, **columns: Any
    ) -> UUID:
        made = datetime.now(UTC) - timedelta(seconds=ago)
        id_ = UUID(
            int=lowest_at(made).int | 0x7 << 76 | random.getrandbits(12) << 64 | 2 << 62 | random.getrandbits(62)
        )
        prompt = Prompt(prompt.content, prompt.messages, prompt.inputs, metadata)
        fields = {"owner_id": columns.pop("owner_id", 0), "kept": columns.pop("kept", True), "prompt": prompt}
        reference = columns.pop("client_reference", None)
        ticket = Submission(
            uuid7(), uuid7(), columns.pop("model", "m"), {}, 0, made, made, client_reference=reference, **fields
        )
        assert await self._store.submit([ticket]) == {ticket.id}
        ended = None if output is None and "error_code" not in columns else made + timedelta(seconds=1)
        values: dict[str, Any] = {"id": id_, "completed_at": ended, **columns}
        if ended is not None:
            failed = "error_code" in columns
            values |= (
                {"status": "failed", "error_message": "It broke."}
                if failed
                else {
                    "status": "completed",
                    "output": output,
                    "finish_reason": "stop",
                }
            )
        assigned = ", ".join(f"{name} = ${place}" for place, name in enumerate(values, 2))
        await self._rows.execute(f"UPDATE results SET {assigned} WHERE id = $1", ticket.id, *values.values())
        return id_


@pytest.fixture
def tickets(rows: Any, store: QueueStore) -> Tickets:
    return Tickets(rows, store)


async def found(database: Database, search: Search, caller: Caller = ME) -> list[UUID]:
    """Of all pages, which agree with the count."""
    listed, ids, before = TicketList(database), [], None
    while True:
        page = await listed.page(caller, search, 2, before)
        ids += [row["id"] for row in page.rows]
        before = page.next_before
        if before is None:
            break
    assert ids == sorted(set(ids), reverse=True)
    counted = await listed.count(caller, search)
    assert not counted.exact or counted.number == len(ids)
    return ids


@pytest.mark.parametrize("made", [True, False])
async def test_words_and_properties_find_what_has_them(database: Database, tickets: Tickets, made: bool) -> None:
    key, another = uuid7(), uuid7()
    path = await tickets.make(
        Prompt("See /etc/hosts, and/or foo_bar (gpt-4.1)"), "It's <b>done</b>.", ago=10, server="gpu1", key_id=key
    )
    chat = await tickets.make(
        Prompt(messages=CHAT), "Yes", ago=7200, metadata={"source": {"name": "tests"}, "tags": ["a", 7]}
    )
    failed = await tickets.make(
        Prompt("Überall 東京都"), ago=86_400, error_code="engine_error", client_reference="r'1\\"
    )
    others = await tickets.make(Prompt("heron"), "heron", owner_id=1, server="gpu1")
    waits = await tickets.make(Prompt("A heron waits"), ago=30, metadata={"source": {"name": "tests"}}, key_id=key)
    if made:
        await add_words(WordStore(database))
    for search, expected in (
        (Search(text="HOSTS etc"), [path]),
        (Search(text="or"), [path]),
        (Search(text="foo_bar"), [path]),
        (Search(text="gpt-4.1 done b"), [path]),
        (Search(text="ost"), []),
        (Search(text="heron"), [waits, chat]),
        (Search(text="brief yes"), [chat]),
        (Search(text="goose"), []),
        (Search(text="überall"), [failed]),
        (Search(text="東京"), [failed]),
        (Search(text="broke"), [failed]),
        (Search(server="gpu1"), [path]),
        (Search(key_id=key), [path, waits]),
        (Search(key_id=key, state=State.QUEUED), [waits]),
        (Search(key_id=another), []),
        (Search(error_code="engine_error"), [failed]),
        (Search(error_code="engine"), []),
        (Search(reference="r'1\\", state=State.FAILED), [failed]),
        (Search(model="m", state=State.COMPLETED), [path, chat]),
        (Search(model="m", state=State.QUEUED, text="heron"), [waits]),
        (Search(state=State.RUNNING), []),
        (Search(metadata=(("source", "name"), "tests")), [waits, chat]),
        (Search(metadata=(("tags", "1"), "7")), [chat]),
        (Search(metadata=(("source",), "tests")), []),
        (Search(text="heron", created_after=datetime.now(UTC) - timedelta(hours=1)), [waits]),
        (Search(text="heron", created_before=datetime.now(UTC) - timedelta(hours=1)), [chat]),
    ):
        assert await found(database, search) == expected, search
    assert await found(database, Search(text="heron"), OTHER) == [others]


async def test_of_what_waits_no_more_is_read_than_is_wanted(database: Database, tickets: Tickets) -> None:
    waiting = [await tickets.make(Prompt("A heron waits"), ago=ago) for ago in (50, 10, 40, 30)]
    wanted = Wanted(0, lowest=FIRST_ID, below=ticket_words.upper_bound(None, None), text="heron")
    newest = sorted(waiting, reverse=True)
    assert (await WordStore(database).rest(wanted, ["%heron%"], 2)).ids == newest[:2]
    assert (await WordStore(database).rest(wanted, ["%heron%"])).ids == newest


async def test_what_is_not_kept_has_no_words_and_what_is_removed_no_row(
    database: Database, rows: Any, tickets: Tickets
) -> None:
    unkept = await tickets.make(Prompt("a secret"), "told", kept=False, server="s", metadata={"a": "secret"})
    gone = await tickets.make(Prompt("a secret"), "told", server="s")
    await add_words(WordStore(database))
    assert await found(database, Search(server="s")) == sorted((unkept, gone), reverse=True)
    assert await found(database, Search(text="secret")) == [gone]
    assert await found(database, Search(metadata=(("a",), "secret"))) == []
    await rows.execute("DELETE FROM results WHERE id = $1", gone)
    assert await rows.fetchval("SELECT count(*) FROM ticket_words") == 1


async def test_each_ticket_gets_its_row_once_whoever_makes_them(
    database: Database, rows: Any, tickets: Tickets
) -> None:
    ids = {await tickets.make(Prompt("x"), "y", ago=100 + number) for number in range(40)}
    store = WordStore(database)

    async def work() -> None:
        while await rows_missing():
            await store.add(7)

    async def rows_missing() -> bool:
        async with database.hot() as connection:
            return int(await connection.fetchval("SELECT count(*) FROM ticket_words")) < len(ids)

    await asyncio.gather(*(work() for _ in range(3)))
    assert {row["result_id"] for row in await rows.fetch("SELECT result_id FROM ticket_words")} == ids
    assert await store.add(7) == 0


async def test_what_is_committed_late_is_not_passed_over(
    database: Database, database_url: str, rows: Any, tickets: Tickets
) -> None:
    late = await tickets.make(Prompt("late"), "answer", ago=3600)
    await rows.execute(
        "UPDATE results SET status = 'pending', completed_at = NULL, output = NULL, finish_reason = NULL"
    )
    other = await asyncpg.connect(database_url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute(
        "UPDATE results SET status = 'completed', completed_at = now(), output = 'x', finish_reason = 'stop'"
    )
    await tickets.make(Prompt("soon"), "answer", ago=1)
    store = WordStore(database)

    async def later_one_is_due() -> bool:
        return bool(await rows.fetchval("SELECT max(completed_at) < now() - interval '2 s' FROM results"))

    await eventually(later_one_is_due, "the other ticket ended long enough ago")
    # The other's transaction is older.
    assert await store.add(10) == 0
    await transaction.commit()
    await other.close()
    assert await store.add(10) == 2
    assert await found(database, Search(text="late")) == [late]


async def test_a_search_that_took_its_time_says_how_far_it_came_and_goes_on(
    database: Database, tickets: Tickets, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await tickets.make(Prompt("heron"), "x", ago=600.0 * number) for number in range(1, 40, 6)]
    await add_words(WordStore(database))
    # Each page is one look, at the shortest span.
    monkeypatch.setattr(ticket_words, "MAX_SECONDS", 0.0)
    monkeypatch.setattr(ticket_words, "QUICK_SECONDS", 0.0)
    listed = TicketList(database)
    search = Search(text="heron", created_after=datetime.now(UTC) - timedelta(hours=4))
    page = await listed.page(ME, search, 50)
    assert page.looked_back_to is not None
    assert page.rows == []
    assert not (await listed.count(ME, search)).exact
    assert await found(database, search) == ids[:4] == await listed.ids(ME, search)


async def test_a_search_ends_with_the_oldest_ticket_and_one_of_a_batch_with_the_batch(
    database: Database, tickets: Tickets, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the shortest spans alone, years or months would take longer than this.
    monkeypatch.setattr(ticket_words, "MAX_SECONDS", 10.0)
    monkeypatch.setattr(ticket_words, "QUICK_SECONDS", 0.0)
    await tickets.make(Prompt("heron"), "x", ago=600)
    batch = uuid7()
    await tickets.make(Prompt("heron"), "x", ago=1, batch_id=batch, batch_line=1)
    await add_words(WordStore(database))
    listed = TicketList(database)
    assert await listed.count(ME, Search(text="heron", model="m")) == Counted(2, exact=True)
    await tickets.make(Prompt("heron"), "x", ago=3 * 365 * 86_400)
    assert await listed.count(ME, Search(text="heron", batch_id=batch)) == Counted(1, exact=True)


async def test_spans_cover_each_moment_once() -> None:
    draw = random.Random(1)
    for _ in range(300):
        lowest = draw.choice([0, draw.getrandbits(44)])
        below = lowest + 1 + draw.getrandbits(draw.randint(1, 43))
        wanted = Wanted(0, FIRST_ID if lowest == 0 else UUID(int=lowest << 80), UUID(int=below << 80))
        seen: list[tuple[int, int]] = []

        async def look(bits: int, spans: range, seen: list[tuple[int, int]] = seen) -> bool:
            assert bits in SPANS
            seen.append((spans.start << bits, spans.stop << bits))
            return False

        assert await ticket_words.looked_back(wanted, look) is None
        assert seen[0][1] >= below
        assert seen[-1][0] <= lowest
        assert all(later[0] == earlier[1] for later, earlier in pairwise(seen))


async def test_a_common_word_of_another_owner_costs_nothing(database: Database, rows: Any, tickets: Tickets) -> None:
    mine = await tickets.make(Prompt("heron"), "x", ago=3600, owner_id=1)
    await rows.execute(
        "WITH made AS (INSERT INTO contexts (id, content) VALUES (uuidv7(), 'heron') RETURNING id)"
        " INSERT INTO results (id, context_id, model, parameters, status, completed_at, output, finish_reason)"
        " SELECT uuidv7(), id, 'm', '{}', 'completed', now() - interval '1 minute', 'x', 'stop'"
        " FROM made, generate_series(1, 3000)"
    )
    await add_words(WordStore(database))
    assert (await TicketWords(database).newest(Wanted(1, FIRST_ID, uuid7(), text="heron"), 10)).ids == [mine]
    counted = await TicketList(database).count(ME, Search(text="heron"))
    assert counted.number == 3000


async def test_a_dispatcher_makes_the_rows_of_what_ended(service: Service, rows: Any) -> None:
    id_ = await service.send(prompt="A heron")
    await service.settled(id_)

    async def made() -> bool:
        return [row[0] for row in await rows.fetch("SELECT result_id FROM ticket_words")] == [UUID(id_)]

    await eventually(made, "the ticket has its row")
    (found,) = (await service.client.get("/results/?text=heron")).json()
    assert found["id"] == id_
