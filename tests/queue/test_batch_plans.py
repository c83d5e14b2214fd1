"""The plans of the statements that batches add, with many batches and a long history."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from app.dispatch.batch_files import LEAST_LINES, ROWS_AT_ONCE
from app.queue import batch_parts, batch_work
from tests.postgres_server import RunningPostgres
from tests.queue.test_plans import check, large_database, nodes, plan

ALONE, BATCHES, EACH = 50_000, 50, 2000
OPEN_PENDING, OPEN_FAILED = 500, 20


@pytest.fixture(scope="module")
async def history(postgres: RunningPostgres, template: str) -> AsyncIterator[Any]:
    async with large_database(postgres, template, "batched") as connection:
        await fill(connection)
        yield connection


async def fill(connection: Any) -> None:
    settled = "'completed', now(), 'x', 'stop'"
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters, status, completed_at, output, finish_reason)"
        f" SELECT uuidv7(), c.id, 'm', '{{}}', {settled} FROM contexts c, generate_series(1, {ALONE})"
    )
    await connection.execute(
        "INSERT INTO batches (id, owner_id, endpoint, input_file_id, expires_at, status, lease_until, total)"
        " SELECT uuidv7(), 0, '/v1/completions', uuidv7(), now(),"
        " CASE n WHEN 1 THEN 'in_progress' ELSE 'completed' END,"
        f" CASE n WHEN 1 THEN now() END, {EACH} FROM generate_series(1, {BATCHES}) n"
    )
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters, status, completed_at, output, finish_reason,"
        f" batch_id, batch_line) SELECT uuidv7(), c.id, 'm', '{{}}', {settled}, b.id, n"
        f" FROM contexts c, batches b, generate_series(1, {EACH}) n"
    )
    await connection.execute(
        "UPDATE results SET status = 'pending', completed_at = NULL, output = NULL, finish_reason = NULL"
        f" WHERE batch_line <= {OPEN_PENDING} AND batch_id = (SELECT id FROM batches WHERE lease_until IS NOT NULL)"
    )
    await connection.execute(
        "UPDATE results SET status = 'failed', error_code = 'x', error_message = 'x'"
        f" WHERE batch_line > {EACH - OPEN_FAILED}"
    )
    await connection.execute("VACUUM ANALYZE results, batches")


@pytest.fixture
async def open_batch(history: Any) -> UUID:
    found: UUID = await history.fetchval("SELECT id FROM batches WHERE lease_until IS NOT NULL")
    return found


async def test_counting_reads_what_is_left_and_what_failed(history: Any) -> None:
    check(await plan(history, batch_work.COUNT), "results_batch_progress", OPEN_PENDING)


async def test_looking_for_a_batch_to_finalize_reads_one_line_of_each_that_is_open(history: Any) -> None:
    check(await plan(history, batch_work.TAKE_TO_FINALIZE, 30.0), "results_batch_progress", 1)


async def test_cancelling_reads_as_many_lines_as_it_cancels(history: Any, open_batch: UUID) -> None:
    found = await plan(history, batch_work.CANCEL_LINES, open_batch)
    check(found, "results_batch_progress", batch_work.CANCEL_LINES_AT_ONCE)


async def test_writing_reads_the_lines_that_are_not_written(history: Any, open_batch: UUID) -> None:
    transaction = history.transaction()
    await transaction.start()
    await history.execute(
        "UPDATE batches SET written = int4multirange(int4range(1, 1500), int4range(1520, $1)) WHERE id = $2",
        EACH - 30,
        open_batch,
    )
    try:
        check(await plan(history, batch_parts.UNWRITTEN, open_batch), "results_by_batch", 51)
    finally:
        await transaction.rollback()
    found = await plan(history, batch_parts.LINES, open_batch, list(range(1, ROWS_AT_ONCE + 1)))
    check(found, "results_by_batch", ROWS_AT_ONCE)


async def test_looking_for_lines_to_write_reads_none(history: Any) -> None:
    found = await plan(history, batch_work.TAKE_TO_WRITE, 30.0, LEAST_LINES)
    assert {node.get("Relation Name") for node in nodes(found)} <= {None, "batches"}
