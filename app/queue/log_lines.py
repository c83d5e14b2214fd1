"""SQL of the kept log lines: the newest of each kind of process, written in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.db.engine import Database
from app.telemetry.ring import Line

# Of each kind of process.
MOST_KEPT = 5000

ADD = """
INSERT INTO log_lines (at, level, process, host, logger, message)
SELECT g.at, g.level, $1, $2, g.logger, g.message
FROM unnest($3::timestamptz[], $4::smallint[], $5::text[], $6::text[]) AS g(at, level, logger, message)
"""
REMOVE = """
DELETE FROM log_lines WHERE process = $1 AND id <= (
    SELECT id FROM log_lines WHERE process = $1 ORDER BY id DESC OFFSET $2 LIMIT 1
)
"""
# A bounded table, so what no index finds is found soon enough.
NEWEST = """
SELECT id, at, level, process, host, logger, message FROM log_lines
WHERE ($1::text IS NULL OR process = $1) AND level >= $2 AND ($3::text IS NULL OR message ILIKE $3 OR logger ILIKE $3)
  AND ($4::bigint IS NULL OR id < $4)
ORDER BY id DESC LIMIT $5
"""


class LogLineStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, process: str, host: str, lines: Sequence[Line]) -> None:
        columns = zip(*((line.at, line.level, line.logger, line.message) for line in lines), strict=True)
        async with self._database.hot() as connection:
            await connection.execute(ADD, process, host, *map(list, columns))

    async def trim(self, process: str) -> None:
        """Removes all but the newest MOST_KEPT of a kind of process."""
        async with self._database.hot() as connection:
            await connection.execute(REMOVE, process, MOST_KEPT)

    async def newest(
        self, process: str | None, level: int, pattern: str | None, before: int | None, limit: int
    ) -> list[Mapping[str, Any]]:
        """Newest first; `pattern` as LIKE has it."""
        async with self._database.hot() as connection:
            rows: list[Mapping[str, Any]] = await connection.fetch(NEWEST, process, level, pattern, before, limit)
        return rows
