"""Owners take turns, and see nothing of each other."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.db.ids import uuid7
from app.db.tables.contexts import Prompt
from app.queue.store import QueueStore
from app.queue.ticket import Claim, Idempotency, Submission


@pytest.fixture
async def rows(database_url: str) -> Any:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO owners (id, name, weight) VALUES (1, 'one', 1), (2, 'two', 3), (3, 'three', 1)"
    )
    yield connection
    await connection.close()


async def submit(store: QueueStore, owner_id: int, count: int, age: float = 0.0) -> list[UUID]:
    made = datetime.now(UTC) - timedelta(seconds=age)
    submissions = [
        Submission(uuid7(), uuid7(), "m", {}, 0, made, made, owner_id=owner_id, prompt=Prompt("prompt"))
        for _ in range(count)
    ]
    ids = [submission.id for submission in submissions]
    assert await store.submit(submissions) == set(ids)
    return ids


async def claim(store: QueueStore, slots: int, running: dict[tuple[str, int], int] | None = None) -> list[Claim]:
    claimed = await store.claim([("m", "s", None)] * slots, lease_seconds=30, dispatcher="d", running=running or {})
    return claimed.claims


@pytest.mark.usefixtures("rows")
async def test_a_single_prompt_does_not_wait_behind_anothers_flood(store: QueueStore) -> None:
    await submit(store, 1, 100, age=60)
    (single,) = await submit(store, 3, 1)
    assert single in [each.id for each in await claim(store, 2)]


@pytest.mark.usefixtures("rows")
async def test_slots_are_shared_by_weight(store: QueueStore) -> None:
    await submit(store, 1, 100, age=60)
    await submit(store, 2, 100)
    assert Counter(each.owner_id for each in await claim(store, 40)) == {1: 10, 2: 30}


@pytest.mark.usefixtures("rows")
async def test_what_runs_already_counts_as_a_turn(store: QueueStore) -> None:
    await submit(store, 1, 100, age=60)
    await submit(store, 3, 100)
    assert [each.owner_id for each in await claim(store, 4, {("m", 1): 10, ("m", 3): 6})] == [3, 3, 3, 3]


@pytest.mark.usefixtures("rows")
async def test_slots_that_one_owner_leaves_go_to_the_others(store: QueueStore) -> None:
    await submit(store, 1, 3)
    await submit(store, 3, 100)
    assert Counter(each.owner_id for each in await claim(store, 40)) == {1: 3, 3: 37}


async def test_rows_that_another_dispatcher_holds_are_worth_asking_again(store: QueueStore, rows: Any) -> None:
    held = await submit(store, 1, 1)
    (free,) = await submit(store, 3, 1, age=-1)
    async with rows.transaction():
        await rows.execute("SELECT FROM results WHERE id = any($1) FOR UPDATE", held)
        claimed = await store.claim([("m", "s", None)], lease_seconds=30, dispatcher="d")
        assert (claimed.claims, claimed.raced) == ([], True)
    assert {each.id for each in await claim(store, 2)} == {*held, free}


@pytest.mark.usefixtures("rows")
async def test_a_key_of_one_owner_is_free_for_another(store: QueueStore) -> None:
    for owner_id in (1, 2):
        key = Idempotency("the-same", bytes([owner_id]))
        assert await store.create_context(uuid7(), Prompt("x"), datetime.now(UTC), key, owner_id)
        assert not await store.create_context(uuid7(), Prompt("x"), datetime.now(UTC), key, owner_id)
