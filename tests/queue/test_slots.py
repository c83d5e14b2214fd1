"""All dispatchers together get no more of a model on a server than its concurrency."""

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.db.engine import Database
from app.db.ids import uuid7
from app.queue.slots import Ended, Slot, SlotStore
from app.queue.store import QueueStore
from app.queue.ticket import Claim, Submission

MOST = 7
LEASE = 30.0


@pytest.fixture
async def slots(database: Database) -> SlotStore:
    store = SlotStore(database)
    await store.make([("s", "m", MOST), ("t", "m", 2)])
    return store


async def submitted(store: QueueStore, rows: Any, count: int) -> None:
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'p')", context)
    now = datetime.now(UTC)
    await store.submit([Submission(uuid7(), context, "m", {}, 0, now, now) for _ in range(count)])


async def claimed(
    store: QueueStore, asked: int, *, server: str = "s", most: int = MOST, lease: float = LEASE, ended: Any = ()
) -> list[Claim]:
    wanted = [("m", server, most)] * asked
    return (await store.claim(wanted, lease_seconds=lease, dispatcher="d", ended=ended)).claims


def slot_of(claim: Claim) -> Slot:
    assert claim.slot is not None
    return Slot(claim.server, claim.model, claim.slot, claim.token)


async def held(rows: Any) -> Counter[str]:
    """How many tickets are claimed on each server, by the tickets themselves."""
    found = await rows.fetch(
        "SELECT server, count(*) AS n FROM results WHERE status = 'pending' AND attempt_token IS NOT NULL"
        " AND available_at > now() GROUP BY server"
    )
    return Counter({row["server"]: row["n"] for row in found})


async def test_claims_that_come_at_once_never_exceed_it(store: QueueStore, slots: SlotStore, rows: Any) -> None:
    await submitted(store, rows, 300)
    for _ in range(8):
        answers = await asyncio.gather(*(claimed(store, 5) for _ in range(8)))
        claims = [claim for answer in answers for claim in answer]
        # Who meets another's locks asks again, as a dispatcher does.
        claims += await claimed(store, MOST)
        assert len(claims) == MOST
        assert sorted(claim.slot for claim in claims if claim.slot is not None) == list(range(MOST))
        assert await held(rows) == {"s": MOST}
        assert await claimed(store, 5) == []
        await rows.execute("UPDATE results SET attempt_token = NULL, attempt_started_at = NULL")
        await slots.end([Ended(slot_of(claim)) for claim in claims])


async def test_many_dispatchers_that_claim_and_end_at_random_stay_within_it(
    store: QueueStore, slots: SlotStore, rows: Any, database_url: str
) -> None:
    """The database is asked all the while, and never shows more than the servers' concurrency."""
    await submitted(store, rows, 400)
    done: list[UUID] = []
    most_seen: Counter[str] = Counter()
    over = asyncio.Event()

    async def dispatcher(seed: int) -> None:
        draw = random.Random(seed)
        while not over.is_set():
            wanted = [("m", "s", MOST)] * draw.randint(1, 9) + [("m", "t", 2)] * draw.randint(0, 3)
            claims = (await store.claim(wanted, lease_seconds=LEASE, dispatcher=str(seed))).claims
            await asyncio.sleep(draw.random() * 0.01)
            if claims:
                ids = [claim.id for claim in claims]
                await rows_of[seed].execute("DELETE FROM results WHERE id = ANY ($1)", ids)
                await slots.end([Ended(slot_of(claim), spent=True) for claim in claims])
                done.extend(ids)
            if len(done) == 400:
                over.set()

    async def watch() -> None:
        while not over.is_set():
            now = await held(rows)
            for server, n in now.items():
                most_seen[server] = max(most_seen[server], n)
            await asyncio.sleep(0)

    rows_of = {seed: await asyncpg.connect(database_url) for seed in range(4)}
    await asyncio.wait_for(asyncio.gather(watch(), *(dispatcher(seed) for seed in range(4))), 60)
    for connection in rows_of.values():
        await connection.close()
    assert len(set(done)) == 400
    assert most_seen["s"] <= MOST
    assert most_seen["t"] <= 2
    assert most_seen["s"] > 1
    assert await rows.fetchval("SELECT sum(attempts) FROM server_slots") == 400


async def test_a_slot_is_free_when_its_lease_is_over_or_its_run_has_ended(
    store: QueueStore, slots: SlotStore, rows: Any
) -> None:
    await submitted(store, rows, 30)
    first = await claimed(store, 20, lease=0.0)
    assert len(first) == MOST
    # Those are another dispatcher's by now, so nothing of the first's renewal counts.
    second = await claimed(store, 20)
    assert len(second) == MOST
    await slots.renew([slot_of(claim) for claim in first], 1000)
    assert await claimed(store, 20) == []
    # What a dispatcher has ended, and not yet given back, it may use itself.
    third = await claimed(store, 20, ended=[claim.token for claim in second[:3]])
    assert len(third) == 3
    # Given back late, it stays whose it is.
    await slots.end([Ended(slot_of(claim), True, 3, 5, 0.5, 0.01) for claim in second[:3]])
    assert await claimed(store, 20) == []
    await slots.end([Ended(slot_of(claim), error_code="server_died", error_message="It died.") for claim in second[3:]])
    assert len(await claimed(store, 20)) == MOST - 3
    (used,) = [dict(row) for row in await slots.used(["s"])]
    assert (used["in_flight"], used["attempts"], used["prompt_tokens"], used["completion_tokens"]) == (MOST, 3, 9, 15)
    assert (used["gpu_seconds"], round(used["cost"], 6), used["error_code"]) == (1.5, 0.03, "server_died")


async def test_a_smaller_concurrency_counts_at_once(store: QueueStore, slots: SlotStore, rows: Any) -> None:
    await submitted(store, rows, 30)
    assert len(await claimed(store, 20, most=3)) == 3
    assert await claimed(store, 20, most=2) == []
    assert len(await claimed(store, 20, most=5)) == 2


async def test_what_waits_for_a_slot_is_told_from_an_empty_queue(
    store: QueueStore, slots: SlotStore, rows: Any
) -> None:
    wanted = [("m", "s", MOST)] * 20 + [("other", "s", MOST)]
    answer = await store.claim(wanted, lease_seconds=LEASE, dispatcher="d")
    assert (answer.claims, answer.granted) == ([], {"m": MOST})
    await submitted(store, rows, 20)
    assert len((await store.claim(wanted, lease_seconds=LEASE, dispatcher="d")).claims) == MOST
    assert (await store.claim(wanted, lease_seconds=LEASE, dispatcher="d")).granted == {}


async def test_a_claim_keeps_the_order_of_service_over_servers(store: QueueStore, slots: SlotStore, rows: Any) -> None:
    await submitted(store, rows, 20)
    wanted = [("m", "t", 2), ("m", "s", MOST)] * 10
    claims = (await store.claim(wanted, lease_seconds=LEASE, dispatcher=str(uuid4()))).claims
    assert Counter(claim.server for claim in claims) == {"s": MOST, "t": 2}
    assert [claim.id for claim in claims] == sorted(claim.id for claim in claims)
