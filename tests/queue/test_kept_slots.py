"""The last slots of a server are kept for work that is due: what yields, as batches do, never has them."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.queue.slots import Ended, Slot, SlotStore
from app.queue.store import QueueStore
from app.queue.ticket import Claim, Claims, Submission
from tests.service import eventually, running_api, running_dispatcher

MOST, KEPT = 8, 2
LATER = timedelta(hours=1)


@pytest.fixture
async def slots(database: Database) -> SlotStore:
    store = SlotStore(database)
    await store.make([("s", "m", MOST)])
    return store


async def submitted(store: QueueStore, rows: Any, due: int, yielding: int, owner_id: int = 0) -> None:
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content, owner_id) VALUES ($1, 'p', $2)", context, owner_id)
    now = datetime.now(UTC)
    ranks = [now] * due + [now + LATER] * yielding
    await store.submit([Submission(uuid7(), context, "m", {}, 0, rank, now, owner_id=owner_id) for rank in ranks])


async def claim(store: QueueStore, asked: int = MOST) -> Claims:
    return await store.claim(
        [("m", "s", MOST)] * asked, lease_seconds=30.0, dispatcher="d", kept_share=(KEPT + 0.5) / MOST
    )


def numbers(claims: list[Claim]) -> list[int | None]:
    return sorted(claim.slot for claim in claims if claim.slot is not None)


async def end(slots: SlotStore, claims: list[Claim]) -> None:
    await slots.end([Ended(Slot("s", "m", claim.slot, claim.token)) for claim in claims if claim.slot is not None])


async def test_what_yields_leaves_them_and_what_is_due_has_them_at_once(
    store: QueueStore, slots: SlotStore, rows: Any
) -> None:
    await submitted(store, rows, 0, 20)
    first = await claim(store)
    assert numbers(first.claims) == list(range(MOST - KEPT))
    assert first.held_back == KEPT
    assert not first.raced, "nobody was quicker, so there is nothing to ask again for"
    assert (await claim(store, KEPT)).claims == []

    await submitted(store, rows, 3, 0)
    second = await claim(store, KEPT)
    assert numbers(second.claims) == [MOST - KEPT, MOST - 1]
    assert (await claim(store)).claims == []

    await end(slots, [second.claims[0], first.claims[0]])
    third = await claim(store, 2)
    assert len(third.claims) == 2, "one that is due, and one that yields in the slot that another had"


@pytest.mark.parametrize(("share", "yielding"), [(KEPT / MOST, MOST - KEPT), (0.0, MOST + 3)])
async def test_what_goes_ahead_of_the_settles_is_due_where_slots_are_kept(
    store: QueueStore, slots: SlotStore, rows: Any, share: float, yielding: int
) -> None:
    await slots.make([("s", "m", MOST + 5)])
    await submitted(store, rows, 0, 20)

    async def claim(ahead: int) -> int:
        wanted = [("m", "s", MOST, ahead)] * 20
        return len((await store.claim(wanted, lease_seconds=30.0, dispatcher="d", kept_share=share)).claims)

    assert await claim(3) == yielding
    await submitted(store, rows, 20, 0)
    assert await claim(3) == MOST + 3 - yielding
    assert await claim(3) == 0
    assert await claim(4) == 1, "another dispatcher measures for itself"


async def test_what_is_due_takes_them_first_so_that_the_others_lose_none(
    store: QueueStore, slots: SlotStore, rows: Any
) -> None:
    await submitted(store, rows, 1, 20)
    found = await claim(store)
    assert numbers(found.claims) == [*range(MOST - KEPT), MOST - 1]
    assert found.held_back == 1


async def test_what_is_due_has_all_there_are(store: QueueStore, slots: SlotStore, rows: Any) -> None:
    await submitted(store, rows, 20, 20)
    found = await claim(store)
    assert numbers(found.claims) == list(range(MOST))
    assert found.held_back == 0


async def test_what_has_waited_for_long_is_due(store: QueueStore, slots: SlotStore, rows: Any) -> None:
    await submitted(store, rows, 0, 20)
    await rows.execute("UPDATE results SET rank = now() - interval '1 second'")
    assert numbers((await claim(store)).claims) == list(range(MOST))


async def test_another_owners_work_that_is_due_is_not_behind(store: QueueStore, slots: SlotStore, rows: Any) -> None:
    await rows.execute("INSERT INTO owners (id, name) VALUES (7, 'seven') ON CONFLICT DO NOTHING")
    await submitted(store, rows, 0, 50)
    assert len((await claim(store)).claims) == MOST - KEPT
    await submitted(store, rows, 1, 0, owner_id=7)
    found: list[Claim] = []
    # Its turn among the owners comes at the latest with the second claim.
    for _ in range(2):
        found += (await claim(store, KEPT)).claims
    assert numbers(found) == [MOST - 1]


@pytest.mark.parametrize("seed", [11, 12, 13])
async def test_dispatchers_that_claim_at_random_keep_them_and_finish_everything(
    store: QueueStore, slots: SlotStore, rows: Any, database_url: str, seed: int
) -> None:
    count = 150
    await submitted(store, rows, count, count)
    done: list[UUID] = []
    most_seen: Counter[str] = Counter()
    over = asyncio.Event()

    async def dispatcher(number: int, connection: Any) -> None:
        draw = random.Random(seed * 10 + number)
        while not over.is_set():
            claims = (await claim(store, draw.randint(1, MOST))).claims
            await asyncio.sleep(draw.random() * 0.01)
            if claims:
                ids = [each.id for each in claims]
                await connection.execute("DELETE FROM results WHERE id = ANY ($1)", ids)
                await end(slots, claims)
                done.extend(ids)
            if len(done) == 2 * count:
                over.set()

    async def watch() -> None:
        while not over.is_set():
            row = await rows.fetchrow(
                "SELECT count(*) AS n, count(*) FILTER (WHERE rank > now()) AS yielding FROM results"
                " WHERE attempt_token IS NOT NULL AND available_at > now()"
            )
            for name in ("n", "yielding"):
                most_seen[name] = max(most_seen[name], row[name])
            await asyncio.sleep(0)

    connections = [await asyncpg.connect(database_url) for _ in range(4)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number, connection in enumerate(connections):
            group.create_task(dispatcher(number, connection))
        group.create_task(watch())
    for connection in connections:
        await connection.close()
    assert len(set(done)) == 2 * count
    assert most_seen["n"] == MOST
    assert most_seen["yielding"] <= MOST - KEPT


async def test_a_single_prompt_does_not_wait_for_a_backlog_of_lower_priority(
    make_settings: Callable[..., Settings], rows: Any
) -> None:
    """Each of the backlog would run for minutes, so the prompt is only answered if a slot was kept for it."""
    running = "SELECT count(*) FROM results WHERE attempt_token IS NOT NULL AND status = 'pending'"
    settings = make_settings(model_concurrency=4, interactive_share=0.25, drain_seconds=0.1)
    async with running_api(settings) as service, running_dispatcher(settings):
        context = await service.context()
        for _ in range(6):
            await service.send(context, model="slow", priority=-50, parameters={"max_tokens": 4000, "ignore_eos": True})

        async def filled() -> bool:
            return bool(await rows.fetchval(running) == 3)

        await eventually(filled, "the backlog has the slots it may have")
        for _ in range(2):
            result = await service.run(model="slow", max_tokens=2)
            assert result["status"] == "completed"
        assert await rows.fetchval(running) == 3
