"""The work on batches: their lines are stored, cancelled and counted, and their ends are told.

A batch is leased to whoever works on it. `lease_until` is null once it is final. Writes of the one who works name the
lease's token, so that one that lost it changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

from app.background import ended
from app.db.engine import Database, translated_errors
from app.db.faults import is_of_the_row
from app.errors import DatabaseUnavailable
from app.queue import locks
from app.queue.batch_lines import CONTEXT_COLUMNS, RESULT_COLUMNS, LineSpool, SpooledLine
from app.queue.batches import COLUMNS
from app.queue.bulk import statements_of, write_apart
from app.queue.counting import count_final
from app.queue.statements.cancel import cancel_where
from app.queue.statements.channels import QUEUED_CHANNEL

CANCEL_LINES_AT_ONCE = 500
COPY_SECONDS = 600
LINES_AT_ONCE = 5000

# The events of a key's webhook speak of results; of a batch it is told the same way.
ANNOUNCE = """INSERT INTO webhook_deliveries (owner_id, batch_id, event, url)
    SELECT owner_id, id, 'batch.' || status, webhook->>'url' FROM ended
    WHERE webhook->'events' ? (CASE status WHEN 'completed' THEN 'result.completed' ELSE 'result.failed' END)"""

TAKE = f"""
UPDATE batches SET lease_token = gen_random_uuid(), lease_until = now() + make_interval(secs => $1), tries = tries + 1
    %s
WHERE id = (
    SELECT b.id FROM batches b WHERE b.lease_until <= now() AND %s
    ORDER BY b.lease_until, b.id LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING {COLUMNS}, tally
"""
TAKE_TO_LOAD = TAKE % ("", "b.status = 'validating'")
# Whose lines end faster than they are counted.
ENDING = "(b.status = 'cancelling' OR b.expires_at <= now())"
# One that waits for as many lines as $2, and for a twentieth of those that are pending: to find them, these are read.
TAKE_TO_WRITE = TAKE % (
    "",
    f"""b.status IN ('in_progress', 'cancelling') AND ({ENDING}
        OR b.completed + b.failed - coalesce((b.tally->>'completed')::int + (b.tally->>'failed')::int, 0)
            >= greatest($2::int, (b.total - b.completed - b.failed) / 20))""",
)
TAKE_TO_FINALIZE = TAKE % (
    """, status = CASE status WHEN 'in_progress' THEN 'finalizing' ELSE status END,
    finalizing_at = CASE status WHEN 'in_progress' THEN now() ELSE finalizing_at END""",
    "b.status <> 'validating' AND NOT EXISTS (SELECT FROM results r WHERE r.batch_id = b.id AND r.status = 'pending')",
)
LEFT = f"""
SELECT min(CASE WHEN {ENDING} THEN 0 ELSE b.total - b.completed - b.failed END)
FROM batches b WHERE b.lease_until IS NOT NULL AND b.status <> 'validating'
"""

RENEW = """
UPDATE batches SET lease_until = now() + make_interval(secs => $3)
WHERE id = $1 AND lease_token = $2 AND lease_until IS NOT NULL RETURNING id
"""
# `$3` seconds until another may take it; a try that was cut short does not count.
GIVE_BACK = """
UPDATE batches SET lease_until = now() + make_interval(secs => $3), lease_token = NULL,
                   tries = tries - CASE WHEN $4 THEN 0 ELSE 1 END
WHERE id = $1 AND lease_token = $2 AND lease_until IS NOT NULL
"""

LOADED = f"""
WITH loaded AS (
    UPDATE batches SET status = 'in_progress', in_progress_at = now(), total = $3, lease_until = now(),
                       lease_token = NULL, tries = 0
    WHERE id = $1 AND lease_token = $2 AND status = 'validating'
    RETURNING id
)
SELECT pg_notify('{QUEUED_CHANNEL}', '') FROM loaded
"""

REFUSE = f"""
WITH ended AS (
    UPDATE batches SET status = 'failed', failed_at = now(), errors = $3, lease_until = NULL
    WHERE id = $1 AND lease_token = $2 AND status = 'validating'
    RETURNING id, owner_id, status, webhook
), announced AS (
    {ANNOUNCE}
)
SELECT id FROM ended
"""

CANCELLING = "SELECT id FROM batches WHERE lease_until IS NOT NULL AND status = 'cancelling' ORDER BY id"
CANCEL_LINES = cancel_where(f"""id = ANY (ARRAY(
        SELECT l.id FROM results l
        WHERE l.batch_id = $1 AND l.status = 'pending' AND l.cancel_requested_at IS NULL
        LIMIT {CANCEL_LINES_AT_ONCE} FOR UPDATE SKIP LOCKED
    ))""")

# Those that COUNT counts; mostly there are none, and Postgres takes longer to start COUNT than this.
COUNTED = """
SELECT EXISTS (SELECT FROM batches WHERE lease_until IS NOT NULL AND status IN ('in_progress', 'cancelling'))
"""
# What is left and what failed is few rows of an index; the rest is completed. One dispatcher at a time counts.
COUNT = f"""
WITH mine AS (
    SELECT pg_try_advisory_xact_lock({locks.BATCHES}) AS held
), counted AS (
    SELECT b.id,
        (SELECT count(*) FROM results r WHERE r.batch_id = b.id AND r.status = 'pending') AS pending,
        (SELECT count(*) FROM results r WHERE r.batch_id = b.id AND r.status = 'failed') AS failed
    FROM batches b, mine
    WHERE held AND b.lease_until IS NOT NULL AND b.status IN ('in_progress', 'cancelling')
)
UPDATE batches b SET completed = b.total - c.pending - c.failed, failed = c.failed
FROM counted c
WHERE b.id = c.id AND b.status IN ('in_progress', 'cancelling')
  AND (b.completed, b.failed) <> (b.total - c.pending - c.failed, c.failed)
"""

Row = Mapping[str, Any]


class LeaseLost(Exception):
    """Somebody else works on the batch by now, or nobody has to any more."""


class BatchWork:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_to_load(self, lease_seconds: float) -> Row | None:
        return await self._row(TAKE_TO_LOAD, lease_seconds)

    async def take_to_write(self, lease_seconds: float, lines: int) -> Row | None:
        """A batch that still runs, and of which so many lines are final and not in its files, or that ends early."""
        return await self._row(TAKE_TO_WRITE, lease_seconds, lines)

    async def take_to_finalize(self, lease_seconds: float) -> Row | None:
        """A batch all of whose lines are final."""
        return await self._row(TAKE_TO_FINALIZE, lease_seconds)

    async def lines_left(self) -> int | None:
        """How many lines were pending at the last count, in the batch that has the fewest; None for no batch.

        0 where one is cancelled or expires.
        """
        async with self._database.hot() as connection:
            left: int | None = await connection.fetchval(LEFT)
        return left

    async def hold(self, batch: Row, work: Coroutine[Any, Any, None], lease_seconds: float) -> None:
        """Runs `work`, renewing the lease.

        Raises:
            LeaseLost: the work was stopped, because somebody else may do it now.
        """
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=lease_seconds / 3)
                if not task.done():
                    # Postgres being away takes the lease from nobody: whoever comes back first renews or takes it.
                    with suppress(DatabaseUnavailable):
                        if await self._row(RENEW, batch["id"], batch["lease_token"], lease_seconds) is None:
                            # Unless it was the work itself that just ended it.
                            await asyncio.wait({task}, timeout=0.5)
                            if not task.done():
                                raise LeaseLost
            task.result()
        finally:
            await ended([task])

    async def give_back(self, batch: Row, seconds: float, *, count: bool) -> None:
        async with self._database.hot() as connection:
            await connection.execute(GIVE_BACK, batch["id"], batch["lease_token"], seconds, count)

    async def load(
        self, batch: Row, spool: LineSpool, instead: Callable[[SpooledLine, Exception], tuple[bytes, bytes]]
    ) -> None:
        """Stores all lines, or none; `instead` gives what is stored of a line that Postgres refuses.

        Raises:
            LeaseLost: nothing was stored.
        """
        async with self._database.transaction() as connection:

            async def copy(contexts: Any, results: Any) -> None:
                for table, columns, source in (
                    ("contexts", CONTEXT_COLUMNS, contexts),
                    ("results", RESULT_COLUMNS, results),
                ):
                    await connection.copy_to_table(
                        table, source=source, columns=columns, format="text", timeout=COPY_SECONDS
                    )

            async def write(lines: Sequence[SpooledLine]) -> None:
                with translated_errors():
                    await connection.execute("SAVEPOINT lines")
                    try:
                        await copy(spool.contexts(lines), spool.results(lines))
                    except Exception as error:
                        if is_of_the_row(error):
                            await connection.execute("ROLLBACK TO SAVEPOINT lines")
                        raise
                    await connection.execute("RELEASE SAVEPOINT lines")

            async def refused(line: SpooledLine, error: Exception) -> None:
                if not is_of_the_row(error):
                    raise error
                context, result = instead(line, error)
                await copy(BytesIO(context), BytesIO(result))

            for lines in statements_of(spool.lines, LINES_AT_ONCE, lambda line: line.size):
                await write_apart(lines, write, refused)
            if not await connection.fetch(LOADED, batch["id"], batch["lease_token"], len(spool.lines)):
                raise LeaseLost

    async def refuse(self, batch: Row, errors: dict[str, Any]) -> None:
        """Ends the batch as failed, before any of its lines is stored."""
        await self._row(REFUSE, batch["id"], batch["lease_token"], errors)

    async def cancel_lines(self) -> int:
        """Cancels lines of the batches that are being cancelled, some at a time; returns how many."""
        cancelled = 0
        async with self._database.hot() as connection:
            for row in await connection.fetch(CANCELLING):
                rows = await connection.fetch(CANCEL_LINES, row["id"])
                count_final(rows)
                cancelled += len(rows)
        return cancelled

    async def count(self) -> None:
        """Brings the counts of open batches up to date."""
        async with self._database.hot() as connection:
            if await connection.fetchval(COUNTED):
                await connection.execute(COUNT)

    async def _row(self, statement: str, *values: Any) -> Row | None:
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(statement, *values)
        return row
