"""The plans of the busy statements on a large table: what costs little today must not grow with history."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from app.db.ids import uuid7
from app.queue import statements
from app.services.results import GET
from tests.conftest import with_database
from tests.postgres_server import RunningPostgres

SETTLED, PENDING = 200_000, 5_000


@pytest.fixture(scope="module")
async def history(postgres: RunningPostgres, template: str) -> AsyncIterator[Any]:
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE large TEMPLATE {template}")
    connection = await asyncpg.connect(
        with_database(postgres.url, "large"), server_settings={"plan_cache_mode": "force_generic_plan"}
    )
    await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", uuid7())
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters, status, completed_at, output, finish_reason,"
        " client_reference) SELECT uuidv7(), c.id, 'm' || n % 7, '{}', 'completed', now(), 'x', 'stop', 'ref-' || n"
        f" FROM contexts c, generate_series(1, {SETTLED}) n"
    )
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters) SELECT uuidv7(), c.id, 'm' || n % 7, '{}'"
        f" FROM contexts c, generate_series(1, {PENDING}) n"
    )
    await connection.execute("VACUUM ANALYZE results")
    yield connection
    await connection.close()
    await admin.execute("DROP DATABASE large WITH (FORCE)")
    await admin.close()


async def plan(connection: Any, statement: str, *arguments: Any) -> dict[str, Any]:
    transaction = connection.transaction()
    await transaction.start()
    try:
        rows = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *arguments)
    finally:
        await transaction.rollback()
    found: dict[str, Any] = json.loads(rows[0][0])[0]["Plan"]
    return found


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(below for child in node.get("Plans", []) for below in nodes(child))]


def check(found: dict[str, Any], index: str, most_rows: int) -> None:
    """The index is used, results are never scanned whole, and no more of its rows are read than should be."""
    used = {node["Index Name"] for node in nodes(found) if "Index Name" in node}
    assert index in used, used
    for node in nodes(found):
        if node.get("Relation Name") == "results":
            assert node["Node Type"] != "Seq Scan", node
            read = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            assert read <= most_rows, node


async def test_cost_of_a_claim_does_not_grow_with_history(history: Any) -> None:
    slots = ["m1"] * 20
    check(await plan(history, statements.CLAIM, slots, ["s"] * 20, 30.0, "d", []), "results_claim", 200)


async def test_a_claim_of_an_empty_queue_reads_nothing(history: Any) -> None:
    check(await plan(history, statements.CLAIM, ["nobody"], ["s"], 30.0, "d", []), "results_claim", 10)


async def test_cost_of_a_poll_does_not_grow_with_history(history: Any) -> None:
    id_ = await history.fetchval("SELECT id FROM results WHERE status = 'completed' LIMIT 1")
    check(await plan(history, GET, id_), "results_pkey", 1)


async def test_a_position_reads_no_further_than_its_limit(history: Any) -> None:
    last = "SELECT rank, id FROM results WHERE status = 'pending' ORDER BY rank DESC LIMIT 1"
    row = await history.fetchrow(last)
    check(
        await plan(history, statements.POSITION, "m1", row["rank"], row["id"]),
        "results_claim",
        statements.POSITION_LIMIT,
    )


async def test_the_sweep_reads_only_what_is_due(history: Any) -> None:
    found = await plan(history, statements.SWEEP, 100)
    used = {node["Index Name"] for node in nodes(found) if "Index Name" in node}
    assert {"results_expiry", "results_cancelling"} <= used
    assert sum(node["Actual Rows"] for node in nodes(found) if node.get("Relation Name") == "results") == 0


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("true", "results_pkey"),
        ("status = 'failed'", "results_by_status"),
        ("model = 'nobody'", "results_by_model"),
        ("model = 'm3'", "results_by_model"),
        ("context_id = '00000000-0000-7000-8000-000000000000'", "results_by_context"),
        ("client_reference = 'ref-77'", "results_by_client_reference"),
    ],
)
async def test_each_list_filter_reads_its_page(history: Any, where: str, index: str) -> None:
    found = await plan(history, f"SELECT * FROM results WHERE {where} ORDER BY id DESC LIMIT 101")
    used = {node["Index Name"] for node in nodes(found) if "Index Name" in node}
    # A common value is found as fast by walking the primary key.
    assert index in used or used == {"results_pkey"}, used
    for node in nodes(found):
        assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 1500, node
