"""All SQL of files that come in parts. Until it is complete, each part is a file that only its upload knows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from app.db.engine import Database
from app.queue.files import COLUMNS as FILE

COLUMNS = """id, filename, purpose, bytes, file_seconds, file_id, created_at, expires_at, CASE
    WHEN file_id IS NOT NULL THEN 'completed' WHEN cancelled_at IS NOT NULL THEN 'cancelled'
    WHEN expires_at <= now() THEN 'expired' ELSE 'pending' END AS status"""
CREATE = f"""
INSERT INTO uploads (id, owner_id, purpose, filename, bytes, file_seconds, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7)) RETURNING {COLUMNS}
"""
GET = f"SELECT {COLUMNS} FROM uploads WHERE id = $1 AND owner_id = $2"
# Parts may be added side by side, but not while it ends.
GET_TO_ADD, GET_TO_END = f"{GET} FOR SHARE", f"{GET} FOR UPDATE"
CHUNK = "SELECT data FROM file_chunks WHERE file_id = $1 AND number = $2"
PARTS = "SELECT id, bytes FROM files WHERE upload_id = $1"
INSERT_FILE = f"""
INSERT INTO files (id, owner_id, purpose, filename, bytes, expires_at, key_id)
SELECT $2, owner_id, purpose, filename, bytes, now() + make_interval(secs => file_seconds), $3
FROM uploads WHERE id = $1 RETURNING {FILE}
"""
# What a chunk holds stays where it is: only its row is written anew.
MOVE_CHUNKS = """
WITH parts AS (
    SELECT id, place, (SELECT count(*) FROM file_chunks c WHERE c.file_id = p.id) AS chunks
    FROM unnest($2::uuid[]) WITH ORDINALITY p (id, place)
), placed AS (
    SELECT id, (sum(chunks) OVER (ORDER BY place) - chunks)::integer AS first FROM parts
)
UPDATE file_chunks c SET file_id = $1, number = first + number FROM placed p WHERE c.file_id = p.id
"""
DELETE_PARTS = "DELETE FROM files WHERE upload_id = $1"
COMPLETE = f"UPDATE uploads SET file_id = $2 WHERE id = $1 RETURNING {COLUMNS}"
CANCEL = f"UPDATE uploads SET cancelled_at = now() WHERE id = $1 RETURNING {COLUMNS}"
REMOVE = """
DELETE FROM uploads WHERE id IN (
    SELECT id FROM uploads WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

Row = Mapping[str, Any]


class OpenUpload:
    """An upload whose row the transaction of `connection` holds."""

    def __init__(self, connection: Any, row: Row) -> None:
        self._connection = connection
        self.row = row

    async def parts(self) -> dict[UUID, int]:
        """The bytes of each."""
        return {part["id"]: part["bytes"] for part in await self._connection.fetch(PARTS, self.row["id"])}

    async def content(self, parts: Mapping[UUID, int], ids: Sequence[UUID]) -> AsyncIterator[bytes]:
        """What the parts hold, in the order of the ids, a chunk at a time."""
        for id_ in ids:
            read = number = 0
            while read < parts[id_]:
                chunk: bytes = await self._connection.fetchval(CHUNK, id_, number)
                yield chunk
                read += len(chunk)
                number += 1

    async def complete(self, file_id: UUID, key_id: UUID | None, ids: Sequence[UUID]) -> tuple[Row, Row]:
        """The upload and its file, made of these parts in this order; the other parts are gone."""
        id_ = self.row["id"]
        file: Row = await self._connection.fetchrow(INSERT_FILE, id_, file_id, key_id)
        await self._connection.execute(MOVE_CHUNKS, file_id, ids)
        await self._connection.execute(DELETE_PARTS, id_)
        upload: Row = await self._connection.fetchrow(COMPLETE, id_, file_id)
        return upload, file

    async def cancel(self) -> Row:
        await self._connection.execute(DELETE_PARTS, self.row["id"])
        row: Row = await self._connection.fetchrow(CANCEL, self.row["id"])
        return row


async def upload_to_add(connection: Any, id_: UUID, owner_id: int) -> Row | None:
    """The upload, which cannot end before the transaction does."""
    row: Row | None = await connection.fetchrow(GET_TO_ADD, id_, owner_id)
    return row


async def upload_to_end(connection: Any, id_: UUID, owner_id: int) -> OpenUpload | None:
    """The upload, once nobody adds to it, and nobody does before the transaction has ended."""
    row: Row | None = await connection.fetchrow(GET_TO_END, id_, owner_id)
    return None if row is None else OpenUpload(connection, row)


class UploadStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, id_: UUID, owner_id: int, purpose: str, filename: str, size: int, file_seconds: int | None, seconds: float
    ) -> Row:
        """`size` is in bytes; it expires after `seconds`, and its file `file_seconds` after it was completed."""
        values = (id_, owner_id, purpose, filename, size, file_seconds, seconds)
        async with self._database.hot() as connection:
            row: Row = await connection.fetchrow(CREATE, *values)
        return row

    async def get(self, id_: UUID, owner_id: int) -> Row | None:
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(GET, id_, owner_id)
        return row

    async def remove(self, before: datetime, limit: int) -> int:
        """Removes those that expired before; returns how many."""
        async with self._database.hot() as connection:
            done: str = await connection.execute(REMOVE, before, limit)
        return int(done.split()[-1])
