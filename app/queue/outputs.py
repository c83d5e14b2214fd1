"""Output files, read part by part; the statement that settles stores them (statements/settle.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.db.engine import Database

PART_BYTES = 512 * 1024
WHICH = "f.result_id = $1 AND f.response = $2 AND f.name = $3 AND f.element = $4"
GET = f"""
SELECT f.media_type, octet_length(f.data) AS bytes FROM output_files f JOIN results r ON r.id = f.result_id
WHERE {WHICH} AND r.owner_id = $5
"""  # noqa: S608
PART = f"SELECT substring(f.data FROM $5::int + 1 FOR {PART_BYTES}) FROM output_files f WHERE {WHICH}"  # noqa: S608


class OutputStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(
        self, result_id: UUID, response: int, name: str, element: int, owner_id: int
    ) -> Mapping[str, Any] | None:
        """The `media_type` and the `bytes` of a file."""
        async with self._database.hot() as connection:
            row: Mapping[str, Any] | None = await connection.fetchrow(GET, result_id, response, name, element, owner_id)
        return row

    async def part(self, result_id: UUID, response: int, name: str, element: int, start: int) -> bytes | None:
        """PART_BYTES from `start` on, or fewer at the end; None when the file is gone."""
        async with self._database.hot() as connection:
            found: bytes | None = await connection.fetchval(PART, result_id, response, name, element, start)
        return found
