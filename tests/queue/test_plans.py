"""The plans of the busy statements on a large table: what costs little today must not grow with history."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.db.engine import HOT_SETTINGS
from app.db.ids import FIRST_ID, LAST_ID, uuid7
from app.db.queries import compiled
from app.db.tables.results import SettledColumns
from app.queue import backlog, demand
from app.queue.bulk import MAX_STATEMENT_BYTES
from app.queue.housekeeping import LOCK_UNUSED_CONTEXTS
from app.queue.statements.cancel import CANCEL, SWEEP
from app.queue.statements.claim import CLAIM, CLAIM_ONLY
from app.queue.statements.position import POSITION, POSITION_LIMIT
from app.queue.statements.release import RELEASE
from app.queue.statements.renew import RENEW
from app.queue.statements.settle import SETTLE
from app.queue.store import settlement_row
from app.queue.ticket import Outcome, Settlement, Status
from app.services.contexts import newest_requests
from app.services.results import GET, GET_PLACED
from app.services.ticket_walk import step_query, ways
from tests.conftest import with_database
from tests.postgres_server import RunningPostgres

SETTLED, PENDING, FAILED = 200_000, 5_000, 3_000
OTHER_CONTEXT = uuid7()
# Nothing is held or running.
CONCURRENCY = 64
REST = ([], [], [], [], MAX_STATEMENT_BYTES, [CONCURRENCY] * 20, [], ["s"], ["one"], ["triton"], [CONCURRENCY] * 20)
SLOTS = f"""
INSERT INTO server_slots (server, model, number)
SELECT 's', model, n FROM unnest(ARRAY['m', 'm1', 'm2', 'nobody']) AS model, generate_series(0, {CONCURRENCY - 1}) n
"""


@asynccontextmanager
async def large_database(postgres: RunningPostgres, template: str, name: str) -> AsyncIterator[Any]:
    """A connection that plans as the service does, to a database of its own with one context."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    connection = await asyncpg.connect(
        with_database(postgres.url, name), server_settings={"plan_cache_mode": "force_generic_plan"}
    )
    await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", uuid7())
    yield connection
    await connection.close()
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture(scope="module")
async def history(postgres: RunningPostgres, template: str) -> AsyncIterator[Any]:
    async with large_database(postgres, template, "large") as connection:
        await fill(connection)
        yield connection


async def fill(connection: Any) -> None:
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters, status, completed_at, output, finish_reason,"
        " client_reference) SELECT uuidv7(), c.id, 'm' || n % 7, '{}', 'completed', now(), 'x', 'stop', 'ref-' || n"
        f" FROM contexts c, generate_series(1, {SETTLED}) n"
    )
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters, owner_id)"
        " SELECT uuidv7(), c.id, 'm' || n % 7, '{}', CASE WHEN n % 7 = 2 THEN n % 5 ELSE 0 END"
        f" FROM contexts c, generate_series(1, {PENDING}) n"
    )
    # What fails is of another prompt and of another model.
    await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'y')", OTHER_CONTEXT)
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters, status, completed_at, error_code, error_message)"
        " SELECT uuidv7(), $1, 'broken', '{}', 'failed', now(), 'broken', 'It broke'"
        f" FROM generate_series(1, {FAILED})",
        OTHER_CONTEXT,
    )
    await connection.execute(SLOTS)
    await connection.execute("VACUUM ANALYZE results")


async def plan(connection: Any, statement: str, *arguments: Any) -> dict[str, Any]:
    """The plan for any arguments, which is the one the service uses, run with these."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"PREPARE planned AS {statement}")
        given = f"({', '.join(map(literal, arguments))})" if arguments else ""
        rows = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE planned{given}")
    finally:
        await transaction.rollback()
        await connection.execute("DEALLOCATE planned")
    found: dict[str, Any] = json.loads(rows[0][0])[0]["Plan"]
    return found


def literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "'{" + ",".join("NULL" if each is None else str(each) for each in value) + "}'"
    return str(value) if isinstance(value, int | float) else f"'{value}'"


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
    check(await plan(history, CLAIM, slots, ["s"] * 20, 30.0, "d", *REST), "results_claim", 200)


async def test_a_claim_among_several_owners_reads_little_of_each(history: Any) -> None:
    found = await plan(history, CLAIM, ["m2"] * 20, ["s"] * 20, 30.0, "d", [], ["m2"], [1], [7], *REST[4:])
    check(found, "results_claim", 200)


async def test_a_claim_of_an_empty_queue_reads_nothing(history: Any) -> None:
    check(await plan(history, CLAIM, ["nobody"] * 20, ["s"] * 20, 30.0, "d", *REST), "results_claim", 10)


@pytest.mark.parametrize("model", ["m1", "nobody"])
async def test_to_see_whether_a_ticket_is_the_only_one_reads_two(history: Any, model: str) -> None:
    found = await plan(history, CLAIM_ONLY, model, "s", 30.0, "d", [], CONCURRENCY, [])
    check(found, "results_claim", 2)


async def test_the_gauges_read_what_is_pending_and_nothing_else(history: Any) -> None:
    check(await plan(history, backlog.PENDING), "results_claim", PENDING + 10)


@pytest.mark.parametrize(("statement", "arguments"), [(demand.ARRIVED, (["m1"],)), (demand.QUIET, (["m1"], ["pool"]))])
async def test_what_came_lately_is_read_from_there_on(history: Any, statement: str, arguments: tuple[Any, ...]) -> None:
    """And not filtered out of all there is, where less came than is counted at most."""
    found = nodes(await plan(history, statement, *arguments))
    (read,) = [node for node in found if node.get("Relation Name") == "results"]
    assert (read["Index Name"], "Filter" in read) == ("results_pkey", False)
    assert read["Index Cond"].startswith("(id > ")


async def test_cost_of_a_poll_does_not_grow_with_history(history: Any) -> None:
    id_ = await history.fetchval("SELECT id FROM results WHERE status = 'completed' LIMIT 1")
    check(await plan(history, GET, id_, 0), "results_by_owner", 1)


@pytest.mark.parametrize(
    ("wanted", "indexes"),
    [
        ({"context_id": OTHER_CONTEXT, "status": "pending"}, ["results_by_context", "results_by_status"]),
        ({"model": "broken", "status": "completed"}, ["results_by_model", "results_by_status"]),
        ({"context_id": OTHER_CONTEXT, "model": "m1"}, ["results_by_context", "results_by_model"]),
        (
            {"model": "m1", "status": "failed", "client_reference": "ref-1"},
            ["results_by_client_reference", "results_failed_by_model", "results_by_status"],
        ),
    ],
)
async def test_a_list_by_several_filters_walks_no_further_than_it_is_told(
    history: Any, wanted: dict[str, Any], indexes: list[str]
) -> None:
    for way, index in zip(ways(wanted), indexes, strict=True):
        text, values = compiled(step_query(way, {"owner_id": 0, **wanted}, (FIRST_ID, LAST_ID), 100))
        await history.execute("SET plan_cache_mode = force_custom_plan")
        try:
            rows = await history.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", *values)
        finally:
            await history.execute("SET plan_cache_mode = force_generic_plan")
        found = json.loads(rows[0][0])[0]["Plan"]
        check(found, index, 100)


async def test_a_position_reads_no_further_than_its_limit(history: Any) -> None:
    last = "SELECT rank, id FROM results WHERE status = 'pending' ORDER BY rank DESC LIMIT 1"
    row = await history.fetchrow(last)
    check(
        await plan(history, POSITION, "m1", row["rank"], row["id"], 0, ""),
        "results_claim",
        POSITION_LIMIT,
    )


async def test_a_poll_of_a_queued_result_reads_it_and_those_ahead_in_one_statement(history: Any) -> None:
    waiting = "FROM results WHERE status = 'pending' AND model = 'm1'"
    last = await history.fetchval(f"SELECT id {waiting} ORDER BY rank DESC, id DESC LIMIT 1")
    found = await plan(history, GET_PLACED, last, 0)
    read = {node["Index Name"]: node["Actual Rows"] for node in nodes(found) if "Index Name" in node}
    assert read == {"results_by_owner": 1, "results_claim": await history.fetchval(f"SELECT count(*) - 1 {waiting}")}


async def test_the_newest_request_of_a_context_is_read_alone(history: Any) -> None:
    context = await history.fetchval("SELECT id FROM contexts")
    statement, values = compiled(newest_requests([context]))
    found = [node for node in nodes(await plan(history, statement, *values)) if node.get("Relation Name") == "results"]
    assert [node["Actual Rows"] for node in found] == [1]


async def test_the_retention_looks_at_no_more_contexts_than_it_was_told_to(history: Any) -> None:
    first, last = UUID(int=0), UUID(int=2**128 - 1)
    check(await plan(history, LOCK_UNUSED_CONTEXTS, first, last, 10), "results_by_context", 10)


async def test_the_sweep_reads_only_what_is_due(history: Any) -> None:
    found = await plan(history, SWEEP, 100)
    used = {node["Index Name"] for node in nodes(found) if "Index Name" in node}
    assert {"results_expiry", "results_cancelling"} <= used
    assert sum(node["Actual Rows"] for node in nodes(found) if node.get("Relation Name") == "results") == 0


@pytest.mark.parametrize(
    ("table", "where"), [("files", "purpose = 'batch_output'"), ("batches", "status IN ('failed', 'in_progress')")]
)
async def test_lists_of_a_rare_kind_read_no_others(history: Any, table: str, where: str) -> None:
    given = {
        "files": "INSERT INTO files (id, owner_id, purpose, filename, bytes) SELECT uuidv7(), 0, 'batch', 'a.jsonl', 1",
        "batches": "INSERT INTO batches (id, owner_id, endpoint, input_file_id, status, expires_at, lease_until)"
        " SELECT uuidv7(), 0, '/v1/completions', uuidv7(), 'completed', now(), NULL",
    }
    await history.execute(f"{given[table]} FROM generate_series(1, 3000)")
    await history.execute(f"VACUUM ANALYZE {table}")
    found = await plan(history, f"SELECT * FROM {table} WHERE owner_id = 0 AND {where} ORDER BY id DESC LIMIT 21")
    for node in nodes(found):
        assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 20, node


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("true", "results_by_owner"),
        ("status = 'failed'", "results_by_status"),
        ("model = 'nobody'", "results_by_model"),
        ("model = 'm3'", "results_by_model"),
        ("context_id = '00000000-0000-7000-8000-000000000000'", "results_by_context"),
        ("client_reference = 'ref-77'", "results_by_client_reference"),
        ("model = 'm3' AND status = 'failed'", "results_failed_by_model"),
        (
            "context_id = (SELECT context_id FROM results WHERE model = 'm3' LIMIT 1) AND status = 'failed'",
            "results_failed_by_context",
        ),
    ],
)
async def test_each_list_filter_reads_its_page(history: Any, where: str, index: str) -> None:
    found = await plan(history, f"SELECT * FROM results WHERE owner_id = 0 AND {where} ORDER BY id DESC LIMIT 101")
    used = {node["Index Name"] for node in nodes(found) if "Index Name" in node}
    # A common value is found as fast by walking the primary key.
    assert index in used or used == {"results_pkey"}, used
    for node in nodes(found):
        assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 1500, node


async def test_a_plan_made_while_the_tables_were_empty_stays_good(postgres: RunningPostgres, template: str) -> None:
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE young TEMPLATE {template} STRATEGY FILE_COPY")
    connection = await asyncpg.connect(with_database(postgres.url, "young"), server_settings=HOT_SETTINGS)
    context = uuid7()
    await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", context)
    # Nothing analyses the table behind our back, as nothing does in the first minute of a flood.
    await connection.execute("ALTER TABLE results SET (autovacuum_enabled = off)")
    await connection.execute(SLOTS)
    ids = [uuid7() for _ in range(20)]
    nobody, texts, none = [uuid7()] * 20, ["s"] * 20, [None] * 20
    ends = [
        Settlement(id_, uuid7(), Status.FAILED, Outcome.FAILED, "s", SettledColumns(), "broken", "It_broke")
        for id_ in ids
    ]
    arguments = {
        "claim": (CLAIM, ["m"] * 20, texts, 30.0, "d", *REST),
        "renew": (RENEW, ids, nobody, texts, 30.0),
        "settle": (SETTLE[False, False], *zip(*map(settlement_row, ends), strict=True)),
        "release": (
            RELEASE, ids, nobody, texts, texts, [1.0] * 20, ["true"] * 20, none, none, *[[0.0] * 20] * 2, none, none,
        ),
        "cancel": (CANCEL, ids[0], 0, ids[0], "somebody"),
        "position": (POSITION, "m", datetime.now(UTC), ids[0], 0, ""),
    }  # fmt: skip
    calls = {}
    for name, (statement, *given) in arguments.items():
        calls[name] = f"EXECUTE {name}({', '.join(map(literal, given))})"
        await connection.execute(f"PREPARE {name} AS {statement}")
        await connection.fetch(calls[name])
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters) SELECT uuidv7(), $1, 'm', '{}'"
        " FROM generate_series(1, 20000)",
        context,
    )
    try:
        for name, call in calls.items():
            found = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {call}"))[0]["Plan"]
            for node in nodes(found):
                if node.get("Relation Name") == "results":
                    read = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                    assert read <= POSITION_LIMIT, (name, node)
    finally:
        await connection.close()
        await admin.execute("DROP DATABASE young WITH (FORCE)")
        await admin.close()
