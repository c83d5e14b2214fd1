"""The files of a batch while its lines finish: parts, which only the batch knows until it has ended.

A part is a file whose `upload_id` is the batch; its chunks have the number of the first line within them. Which lines
are in the parts already stands in the batch's row, in `written`, which the statement that stores their chunks changes:
whoever dies has stored both or neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from app.db.engine import Database
from app.queue.batch_work import ANNOUNCE, LeaseLost
from app.queue.columns import STORED_BYTES
from app.queue.files import COLUMNS as FILE

# What a line of the files is made of.
RENDERED = """id, batch_line, client_reference, kind, request, model, status, created_at, completed_at,
    cancel_requested_at, output, outputs, finish_reason, prompt_tokens, completion_tokens, error_code, error_message"""

# The lines that are final and in no part yet. Those that are pending are looked at too, so it is not asked often.
UNWRITTEN = f"""
SELECT l.batch_line, l.bytes
FROM batches b CROSS JOIN unnest(int4multirange(int4range(1, NULL)) - b.written) AS gap
CROSS JOIN LATERAL (
    SELECT r.batch_line, {STORED_BYTES} AS bytes FROM results r
    WHERE r.batch_id = b.id AND r.batch_line >= lower(gap) AND r.batch_line < coalesce(upper(gap), 2147483647)
      AND r.status <> 'pending'
    ORDER BY r.batch_line
) l
WHERE b.id = $1 ORDER BY l.batch_line
"""
LINES = f"SELECT {RENDERED} FROM results WHERE batch_id = $1 AND batch_line = ANY ($2::int[]) ORDER BY batch_line"

# A line may be written in other words once its batch is cancelled: the status must be as it was when they were chosen.
WRITE = """
WITH mine AS (
    UPDATE batches SET tally = $4, written = written + (
        SELECT range_agg(int4range(first, last, '[]')) FROM unnest($5::int[], $6::int[]) AS runs(first, last)
    )
    WHERE id = $1 AND lease_token = $2 AND lease_until IS NOT NULL AND status = $3
    RETURNING id, owner_id, key_id
), chunks AS (
    SELECT c.* FROM unnest($8::uuid[], $9::text[], $10::int[], $11::bytea[]) AS c(file_id, filename, number, data), mine
), opened AS (
    INSERT INTO files (id, owner_id, purpose, filename, bytes, key_id, upload_id)
    SELECT c.file_id, mine.owner_id, $7, c.filename, sum(octet_length(c.data)), mine.key_id, mine.id
    FROM chunks c, mine GROUP BY c.file_id, c.filename, mine.owner_id, mine.key_id, mine.id
    ON CONFLICT (id) DO UPDATE SET bytes = files.bytes + EXCLUDED.bytes
), stored AS (
    INSERT INTO file_chunks (file_id, number, data) SELECT file_id, number, data FROM chunks
)
SELECT id FROM mine
"""

# One that was cancelled stays so, whatever its lines came to. The parts become files as any other, which are as old as
# the end; what the chunks hold stays where it is.
FINISH = f"""
WITH ended AS (
    UPDATE batches SET
        status = $3, output_file_id = $4, error_file_id = $5, completed = $6, failed = $7,
        prompt_tokens = $8, completion_tokens = $9, errors = $10, lease_until = NULL, written = '{{}}', tally = NULL,
        completed_at = CASE $3 WHEN 'completed' THEN now() END,
        expired_at = CASE $3 WHEN 'expired' THEN now() END,
        cancelled_at = CASE $3 WHEN 'cancelled' THEN now() END
    WHERE id = $1 AND lease_token = $2 AND lease_until IS NOT NULL
    RETURNING id, owner_id, status, webhook, output_seconds
), announced AS (
    {ANNOUNCE}
), parts AS (
    SELECT p.part, p.id, ended.output_seconds FROM ended, unnest($11::uuid[], $12::uuid[]) AS p(part, id)
), kept AS (
    INSERT INTO files (id, owner_id, purpose, filename, bytes, expires_at, key_id)
    SELECT p.id, f.owner_id, f.purpose, f.filename, f.bytes, now() + make_interval(secs => p.output_seconds), f.key_id
    FROM parts p JOIN files f ON f.id = p.part
), places AS (
    SELECT p.id, c.file_id, c.number, (row_number() OVER (PARTITION BY c.file_id ORDER BY c.number) - 1)::int AS place
    FROM parts p JOIN file_chunks c ON c.file_id = p.part
), moved AS (
    UPDATE file_chunks c SET file_id = p.id, number = p.place
    FROM places p WHERE c.file_id = p.file_id AND c.number = p.number
), dropped AS (
    DELETE FROM files f USING ended WHERE f.upload_id = ended.id
)
SELECT id FROM ended
"""
PARTS = f"SELECT {FILE} FROM files WHERE upload_id = $1"

Row = Mapping[str, Any]


class Chunk(NamedTuple):
    """Lines of one of the files, the first of which is line `number` of the batch."""

    completed: bool
    number: int
    data: bytearray


def part_id(batch_id: UUID, *, completed: bool) -> UUID:
    return uuid5(batch_id, _kind(completed))


class BatchParts:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unwritten(self, batch: Row) -> list[Row]:
        """The numbers of lines that are final and not written, in order, and their `bytes` as they are stored."""
        async with self._database.hot() as connection:
            rows: list[Row] = await connection.fetch(UNWRITTEN, batch["id"])
        return rows

    async def lines(self, batch: Row, numbers: Sequence[int]) -> list[Row]:
        async with self._database.hot() as connection:
            rows: list[Row] = await connection.fetch(LINES, batch["id"], numbers)
        return rows

    async def write(
        self,
        batch: Row,
        purpose: str,
        runs: Sequence[tuple[int, int]],
        chunks: Sequence[Chunk],
        tally: Mapping[str, Any],
    ) -> None:
        """Adds lines to the parts; `runs` are their first and last numbers, the `tally` is of all that are written.

        Raises:
            LeaseLost: nothing was stored; the batch may have been cancelled meanwhile.
        """
        values = (batch["id"], batch["lease_token"], batch["status"], tally, *_columns(runs), purpose)
        files = [part_id(batch["id"], completed=each.completed) for each in chunks]
        names = [f"batch_{batch['id'].hex}_{_kind(each.completed)}.jsonl" for each in chunks]
        numbers, data = [each.number for each in chunks], [each.data for each in chunks]
        async with self._database.hot() as connection:
            if not await connection.fetch(WRITE, *values, files, names, numbers, data):
                raise LeaseLost

    async def finish(
        self,
        batch: Row,
        status: str,
        files: tuple[UUID | None, UUID | None],
        counts: tuple[int, int, int, int],
        errors: dict[str, Any] | None,
    ) -> None:
        """Makes the batch final, and files of its parts: those with answers and with errors, None where there is none.

        `counts` are the lines completed and failed, and the tokens of their prompts and completions; `errors` tells of
        those that failed.

        Raises:
            LeaseLost: nothing was changed.
        """
        values = (batch["id"], batch["lease_token"], status, *files, *counts, errors)
        ids = {part_id(batch["id"], completed=done): id_ for done, id_ in zip((True, False), files, strict=True) if id_}
        async with self._database.hot() as connection:
            if not await connection.fetch(FINISH, *values, list(ids), list(ids.values())):
                raise LeaseLost

    async def parts(self, batch_id: UUID) -> dict[UUID, Row]:
        """The files of its parts, by id, while it has not ended."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(PARTS, batch_id)
        return {row["id"]: row for row in rows}


def _kind(completed: bool) -> str:
    return "output" if completed else "error"


def _columns(runs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [first for first, _ in runs], [last for _, last in runs]
