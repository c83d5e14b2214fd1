"""The outbox in Postgres: who may claim what, and who may close it."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from typing import Any

import pytest

from app.api.schemas import Result
from app.config import Settings
from app.db.engine import Database
from app.dispatch.webhooks import KEPT_DAYS, LARGEST_PAYLOAD, NOT_STORABLE, Deliverer, payload_of
from app.queue.deliveries import CLAIM, Close, DeliveryStore
from app.queue.store import QueueStore
from app.services.addresses import AddressPolicy
from app.services.outbound import Sender
from app.services.retention import oldest_kept
from app.services.webhooks import rows_of
from tests.dispatch.test_defects import submission
from tests.queue.test_plans import nodes, plan

ADD = """
INSERT INTO webhook_deliveries (owner_id, event, url, due_at)
SELECT 0, 'result.completed', $1, now() + make_interval(secs => $2) FROM generate_series(1, $3)
"""
ROW = "SELECT tries, delivered_at IS NOT NULL AS delivered, due_at IS NULL AS ended, last_error FROM webhook_deliveries"


@pytest.fixture
def outbox(database: Database) -> DeliveryStore:
    return DeliveryStore(database)


async def claim(
    outbox: DeliveryStore, running: dict[str, int] | None = None, per_host: int = 8, limit: int = 64
) -> Any:
    return await outbox.claim(running or {}, per_host=per_host, limit=limit, lease_seconds=60)


async def test_no_host_takes_more_than_its_share_or_hides_another(outbox: DeliveryStore, connection: Any) -> None:
    await connection.execute(ADD, "https://slow.test/a", -60, 500)
    await connection.execute(ADD, "https://slow.test:8443/b", -60, 500)
    await connection.execute(ADD, "http://[::1]:80/", -5, 3)
    await connection.execute(ADD, "https://quick.test?x", -1, 3)
    await connection.execute(ADD, "https://later.test/", 3600, 3)
    first = Counter(row["host"] for row in await claim(outbox))
    assert first == {"slow.test": 8, "quick.test": 3, "[::1]": 3}
    assert await claim(outbox, {"slow.test": 8}) == []
    assert Counter(row["host"] for row in await claim(outbox, {"slow.test": 5})) == {"slow.test": 3}
    # With few places left, hosts share them.
    await connection.execute(ADD, "https://quick.test/", 0, 10)
    assert Counter(row["host"] for row in await claim(outbox, limit=4)) == {"slow.test": 2, "quick.test": 2}


async def test_two_that_claim_at_once_share_nothing(outbox: DeliveryStore, connection: Any) -> None:
    await connection.execute(ADD, "https://a.test/", -1, 200)
    claimed = await asyncio.gather(*(claim(outbox, per_host=10, limit=10) for _ in range(20)))
    ids = [row["id"] for rows in claimed for row in rows]
    assert len(ids) == len(set(ids)) > 0


async def test_who_outlived_its_lease_closes_nothing_unless_it_delivered(
    outbox: DeliveryStore, connection: Any
) -> None:
    await connection.execute(ADD, "https://a.test/", -1, 1)
    [old] = await claim(outbox)
    await connection.execute("UPDATE webhook_deliveries SET due_at = now()")
    [new] = await claim(outbox)
    assert (new["id"], new["tries"]) == (old["id"], 2)
    await outbox.close([Close(old["id"], old["tries"], error="too late")])
    assert dict(await connection.fetchrow(ROW)) == {
        "tries": 2,
        "delivered": False,
        "ended": False,
        "last_error": None,
    }
    await outbox.close([Close(old["id"], old["tries"], delivered=True)])
    await outbox.close([Close(new["id"], new["tries"], pause=5, error="refused")])
    row = await connection.fetchrow(ROW)
    assert (row["delivered"], row["ended"], row["last_error"]) == (True, True, None)


async def test_a_try_that_was_not_made_does_not_count(outbox: DeliveryStore, connection: Any) -> None:
    await connection.execute(ADD, "https://a.test/", -1, 1)
    [row] = await claim(outbox)
    await outbox.close([Close(row["id"], row["tries"], pause=0.0)])
    [again] = await claim(outbox)
    assert again["tries"] == row["tries"] == 1


async def test_an_end_that_cannot_be_stored_is_written_without_its_words(
    database: Database, outbox: DeliveryStore, connection: Any, hook_settings: Settings
) -> None:
    await connection.execute(ADD, "https://a.test/", -1, 9)
    claimed = await claim(outbox, per_host=9)
    async with Sender(AddressPolicy.of(True, ()), 1) as sender:
        deliverer = Deliverer(database, hook_settings, Result.of, sender)
        for place, row in enumerate(claimed):
            error = "It said \x00." if place == 4 else "It said no."
            deliverer._ends.append(Close(row["id"], row["tries"], pause=60.0, error=error))
        await deliverer._write_ends()
        assert not deliverer._ends
    said = {row["id"]: row["last_error"] for row in await connection.fetch("SELECT * FROM webhook_deliveries")}
    assert said.pop(claimed[4]["id"]) == NOT_STORABLE
    assert set(said.values()) == {"It said no."}


async def test_payloads_are_read_no_larger_than_they_may_be(
    database: Database, store: QueueStore, connection: Any
) -> None:
    """One document says by its length that it is too large, one only when it is looked at."""
    made = [submission("x") for _ in range(22)]
    await store.submit(made)
    ids = [each.id for each in made]
    await connection.execute("UPDATE results SET output = repeat('x', 4000000) WHERE id = ANY ($1)", ids[:20])
    await connection.execute("UPDATE results SET outputs = to_jsonb(repeat('x', 300000)) WHERE id = $1", ids[20])
    tracemalloc.start()
    try:
        rows = await rows_of(database, ids, LARGEST_PAYLOAD)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert [rows[id_]["bulky"] for id_ in ids] == [True] * 21 + [False]
    assert (
        payload_of({"event": "result.completed", "created_at": None, "data": None}, rows[ids[20]], Result.of).count(
            b"xxx"
        )
        == 0
    )


async def test_ended_deliveries_are_removed_after_a_week(outbox: DeliveryStore, connection: Any) -> None:
    def add(days: int, due: str) -> Any:
        return connection.execute(
            "INSERT INTO webhook_deliveries (id, owner_id, event, url, due_at)"
            f" VALUES (uuidv7(-interval '{days} days'), 0, 'result.failed', 'https://{days}.test/', {due})"
        )

    await add(8, "NULL")
    await add(9, "now() + interval '1 day'")
    await add(6, "NULL")
    assert await outbox.remove(oldest_kept(KEPT_DAYS), 1000) == 1
    left = await connection.fetch("SELECT host FROM webhook_deliveries ORDER BY host")
    assert [row["host"] for row in left] == ["6.test", "9.test"]


async def test_a_claim_reads_no_more_than_it_takes(connection: Any) -> None:
    """Beside 100,000 delivered ones, and one host with 50,000 that wait for their next try."""
    await connection.execute(
        "INSERT INTO webhook_deliveries (owner_id, event, url, due_at, delivered_at)"
        " SELECT 0, 'result.completed', 'https://' || n % 50 || '.test/', NULL, now() FROM generate_series(1, 100000) n"
    )
    await connection.execute(ADD, "https://dead.test/", 3600, 50_000)
    for host in range(50):
        await connection.execute(ADD, f"https://{host}.test/", -1, 20)
    await connection.execute("ANALYZE webhook_deliveries")
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    found = nodes(await plan(connection, CLAIM, ["7.test"], [8], 8, 64, 60.0))
    scans = [node for node in found if node.get("Relation Name") == "webhook_deliveries"]
    assert not [node for node in scans if node["Node Type"] == "Seq Scan"]
    read = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in scans
        if node["Node Type"] != "ModifyTable"
    )
    assert read < 1500
