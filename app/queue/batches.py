"""Batches as their owners see them; their lines are results. What is done to them is in `batch_work`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, text

from app.db.engine import Database
from app.db.tables import batches
from app.queue.audit import Action, Actor, recorded
from app.queue.statements.keys import TAKE_OVER_OLD_KEY
from app.queue.ticket import CANCELLED, Idempotency

# Of a batch, so many failed lines are looked at; of their messages, so much.
FAILURES_READ, MESSAGE_CHARS = 10_000, 500
# In the metadata of a batch that tries the failed lines of another one again, whose id it is as clients know it.
RETRY_OF = "retry_of"
# The id {} of a batch as clients know it, in SQL: `openai.ids.object_id`.
KNOWN_AS = "'batch_' || replace({}::text, '-', '')"
# Of the owner's batches that came after one, so many are looked at for those that tried its lines again.
LATER_READ = 1000

COLUMNS = """id, owner_id, key_id, endpoint, input_file_id, metadata, status, errors, total, completed, failed,
    prompt_tokens, completion_tokens, output_file_id, error_file_id, output_seconds, created_at, expires_at,
    in_progress_at, finalizing_at, completed_at, failed_at, expired_at, cancelling_at, cancelled_at, lease_token,
    tries, wish"""

CREATE = f"""
WITH keyed AS (
    INSERT INTO idempotency_keys AS k (owner_id, key, fingerprint, resource_id)
    SELECT $2::int, $10::text, $11::bytea, $1::uuid WHERE $10::text IS NOT NULL
    {TAKE_OVER_OLD_KEY}
    RETURNING resource_id
)
INSERT INTO batches
    (id, owner_id, key_id, endpoint, input_file_id, metadata, output_seconds, wish, webhook, expires_at)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, now() + make_interval(secs => $12)
WHERE $10::text IS NULL OR EXISTS (SELECT FROM keyed)
RETURNING {COLUMNS}
"""

GET = f"SELECT {COLUMNS} FROM batches WHERE id = $1 AND owner_id = $2"
# Before its lines are there, nothing but the row has to be ended.
CANCEL = f"""
WITH asked AS (
UPDATE batches SET
    status = CASE status WHEN 'validating' THEN 'cancelled' ELSE 'cancelling' END,
    cancelling_at = now(),
    cancelled_at = CASE status WHEN 'validating' THEN now() END,
    lease_until = CASE status WHEN 'validating' THEN NULL ELSE lease_until END
WHERE id = $1 AND owner_id = $2 AND status IN ('validating', 'in_progress')
RETURNING {COLUMNS}
), audited AS (
    {recorded(Action.BATCH_CANCELLED, "asked", "$3", "$4", subject="'batch_' || replace(id::text, '-', '')")}
)
SELECT * FROM asked
"""

ROOM = """
SELECT k.pending_limit, (
    SELECT count(*) FROM (
        SELECT FROM results r WHERE r.key_id = k.id AND r.status = 'pending' LIMIT k.pending_limit
    ) p
) AS pending
FROM api_keys k WHERE k.id = $1 AND k.pending_limit IS NOT NULL
"""

# What the lines that failed so far, and were not cancelled, say: each error with how many have it and the first of
# them, the most frequent errors first; where these lines are very many, of some of them.
FAILURES = f"""
SELECT error_code, error_message, count(*) AS lines, min(batch_line) AS batch_line,
       (array_agg(id ORDER BY batch_line))[1] AS id,
       (array_agg(client_reference ORDER BY batch_line))[1] AS client_reference, sum(count(*)) OVER ()::int8 AS read
FROM (
    SELECT batch_line, id, client_reference, error_code, left(error_message, {MESSAGE_CHARS}) AS error_message
    FROM results WHERE batch_id = $1 AND status = 'failed' AND error_code <> '{CANCELLED}' LIMIT {FAILURES_READ}
) failed GROUP BY error_code, error_message ORDER BY lines DESC, batch_line LIMIT $2
"""
# Of the first that are there, one that runs before one that waits.
PENDING = """
SELECT id FROM (SELECT id, attempt_token FROM results WHERE batch_id = $1 AND status = 'pending' LIMIT 1000) pending
ORDER BY attempt_token IS NULL, id LIMIT 1
"""
WITH_FAILURES = f"""
SELECT {COLUMNS}, (SELECT filename FROM files f WHERE f.id = input_file_id) AS filename FROM batches
WHERE owner_id = $1 AND id >= $2 AND (failed > 0 AND status NOT IN ('cancelling', 'cancelled') OR status = 'failed')
  AND {KNOWN_AS.format("id")} NOT IN (
      SELECT metadata ->> '{RETRY_OF}' FROM batches
      WHERE owner_id = $1 AND id >= $2 AND metadata ->> '{RETRY_OF}' IS NOT NULL
  )
ORDER BY id DESC LIMIT $3
"""
RETRIES = f"""
SELECT {COLUMNS} FROM (
    SELECT * FROM batches WHERE owner_id = $1 AND id > $2 ORDER BY id LIMIT {LATER_READ}
) later WHERE metadata ->> '{RETRY_OF}' = {KNOWN_AS.format("$2::uuid")} ORDER BY id LIMIT $3
"""
FAILED_LINES = """
SELECT batch_line FROM results
WHERE batch_id = $1 AND status = 'failed' AND ($2::text IS NULL OR error_code = $2)
"""

REMOVE = """
DELETE FROM batches WHERE id IN (
    SELECT id FROM batches WHERE id < $1 AND lease_until IS NULL ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

Row = Mapping[str, Any]


class BatchStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        id_: UUID,
        owner_id: int,
        key_id: UUID | None,
        endpoint: str,
        input_file_id: UUID,
        metadata: dict[str, str] | None,
        output_seconds: int | None,
        wish: str,
        webhook: dict[str, Any] | None,
        idempotency: Idempotency | None,
        window_seconds: float,
    ) -> Row | None:
        """The new batch; None when its Idempotency-Key is in use."""
        key, fingerprint = (idempotency.key, idempotency.fingerprint) if idempotency else (None, None)
        row = (id_, owner_id, key_id, endpoint, input_file_id, metadata, output_seconds, wish, webhook)
        return await self._row(CREATE, *row, key, fingerprint, window_seconds)

    async def get(self, id_: UUID, owner_id: int) -> Row | None:
        return await self._row(GET, id_, owner_id)

    async def cancel(self, id_: UUID, owner_id: int, actor: Actor) -> Row | None:
        """The batch, being cancelled from now on; None for one that is not validating or in progress."""
        return await self._row(CANCEL, id_, owner_id, actor.key_id, actor.name)

    async def page(
        self,
        owner_id: int,
        after: UUID | None,
        limit: int,
        statuses: Sequence[str] | None,
        created_after: datetime | None,
        created_before: datetime | None,
    ) -> Sequence[Row]:
        query = select(text(COLUMNS)).where(batches.c.owner_id == owner_id).limit(limit)
        if after is not None:
            query = query.where(batches.c.id < after)
        if statuses is not None:
            query = query.where(batches.c.status.in_(statuses))
        if created_after is not None:
            query = query.where(batches.c.created_at > created_after)
        if created_before is not None:
            query = query.where(batches.c.created_at < created_before)
        async with self._database.reading() as queries:
            return await queries.rows(query.order_by(batches.c.id.desc()))

    async def failures(self, id_: UUID, limit: int) -> list[Row]:
        """The errors of lines that failed, those of a batch that still runs among them, each with its first line.

        `lines` is how many have the error, of the `read` ones that were looked at, FAILURES_READ at most.
        """
        async with self._database.hot() as connection:
            rows: list[Row] = await connection.fetch(FAILURES, id_, limit)
        return rows

    async def pending(self, id_: UUID) -> UUID | None:
        """A line of the batch that runs, or else one that waits; None where none does."""
        row = await self._row(PENDING, id_)
        return None if row is None else row["id"]

    async def with_failures(self, owner_id: int, since: UUID, limit: int) -> list[Row]:
        """Batches with failures that nobody cancelled or retried, newest first, from the id `since` on.

        Each has its `filename`.
        """
        async with self._database.hot() as connection:
            rows: list[Row] = await connection.fetch(WITH_FAILURES, owner_id, since, limit)
        return rows

    async def retries(self, owner_id: int, id_: UUID, limit: int) -> list[Row]:
        """The batches that tried failed lines of this one again, the first one first."""
        async with self._database.hot() as connection:
            rows: list[Row] = await connection.fetch(RETRIES, owner_id, id_, limit)
        return rows

    async def failed_lines(self, id_: UUID, error_code: str | None) -> set[int]:
        """The numbers of all lines that failed, or of those with this error."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(FAILED_LINES, id_, error_code)
        return {row["batch_line"] for row in rows}

    async def pending_room(self, key_id: UUID) -> tuple[int, int] | None:
        """How many tickets the key may have pending, and has; None for no limit."""
        row = await self._row(ROOM, key_id)
        return None if row is None else (row["pending_limit"], row["pending"])

    async def remove(self, older_than: UUID, limit: int) -> int:
        """Removes final batches made before the id `older_than`; returns how many."""
        async with self._database.hot() as connection:
            done: str = await connection.execute(REMOVE, older_than, limit)
        return int(done.split()[-1])

    async def _row(self, statement: str, *values: Any) -> Row | None:
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(statement, *values)
        return row
