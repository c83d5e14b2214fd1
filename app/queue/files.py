"""All SQL of stored files. A file is a row and its numbered chunks, so neither side ever holds it whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import select, text

from app.db.engine import Database
from app.db.tables import files
from app.queue import locks
from app.queue.audit import Action, Actor, recorded
from app.queue.statements.keys import TAKE_KEY
from app.queue.ticket import Idempotency

CHUNK_BYTES = 512 * 1024
CHUNKS_AT_ONCE = 1000

COLUMNS = "id, owner_id, purpose, filename, bytes, created_at, expires_at"
INSERT = """
INSERT INTO files (id, owner_id, purpose, filename, bytes, expires_at, key_id, upload_id)
VALUES ($1, $2, $3, $4, 0, now() + make_interval(secs => $5), $6, $7)
"""
INSERT_CHUNK = "INSERT INTO file_chunks (file_id, number, data) VALUES ($1, $2, $3)"
CLOSE = f"UPDATE files SET bytes = $2 WHERE id = $1 RETURNING {COLUMNS}"
THERE = "(expires_at IS NULL OR expires_at > now())"
# Without the parts of uploads, which only they reach.
KNOWN = f"upload_id IS NULL AND {THERE}"
GET = f"SELECT {COLUMNS} FROM files WHERE id = $1 AND owner_id = $2 AND {KNOWN}"
EXISTS = "SELECT EXISTS (SELECT FROM files WHERE id = $1)"
NAMES = f"SELECT id, filename FROM files WHERE id = ANY ($1) AND owner_id = $2 AND {KNOWN}"
# From byte $3 of chunk $2 on, as many bytes as a large chunk has, or twice as many: chunks may be small, and a long
# line of a batch is one.
CHUNKS = f"""
SELECT number, octet_length(data) AS bytes,
       substring(data FROM 1 + CASE WHEN number = $2 THEN $3 ELSE 0 END FOR {CHUNK_BYTES}) AS data
FROM (
    SELECT number, data, sum(octet_length(data)) OVER (ORDER BY number) - octet_length(data) AS before
    FROM file_chunks WHERE file_id = $1 AND number >= $2 ORDER BY number LIMIT {CHUNKS_AT_ONCE}
) c WHERE before < {CHUNK_BYTES} ORDER BY number
"""
DELETE = f"""
WITH gone AS (
    DELETE FROM files WHERE id = $1 AND owner_id = $2 AND upload_id IS NULL RETURNING id, owner_id, key_id
), audited AS (
    {recorded(Action.FILE_DELETED, "gone", "$3", "$4", subject="'file-' || replace(id::text, '-', '')")}
)
SELECT id FROM gone
"""
LOCK_STORAGE = f"SELECT pg_advisory_xact_lock({locks.STORAGE}, $1)"
USED = f"SELECT coalesce(sum(bytes), 0)::bigint, min(expires_at) FROM files WHERE owner_id = $1 AND {THERE}"
# A batch that has not ended keeps its parts; what one of an older version left of them is of no use.
REMOVE = """
DELETE FROM files WHERE id IN (
    (SELECT id FROM files WHERE expires_at <= now() ORDER BY expires_at LIMIT $2)
    UNION
    (SELECT id FROM files WHERE id < $1 AND NOT EXISTS (
        SELECT FROM batches b WHERE b.id = upload_id AND b.lease_until IS NOT NULL
    ) ORDER BY id LIMIT $2)
    UNION
    (SELECT f.id FROM files f JOIN batches b ON b.id = f.upload_id WHERE b.lease_until IS NULL LIMIT $2)
)
"""


class Place(NamedTuple):
    """Where in a file: the number of a chunk, or of the next one where there is none, and how many bytes into it."""

    chunk: int
    offset: int


START = Place(0, 0)


class FileWriter:
    """Writes one file, or a part of the upload `upload_id`, within a transaction of `connection`.

    `seconds` is how long it is kept, None for no end.
    """

    def __init__(
        self,
        connection: Any,
        id_: UUID,
        owner_id: int,
        purpose: str,
        filename: str,
        seconds: float | None,
        key_id: UUID | None = None,
        *,
        upload_id: UUID | None = None,
    ) -> None:
        self._connection = connection
        self._id = id_
        self._row = (id_, owner_id, purpose, filename, seconds, key_id, upload_id)
        self._waiting = bytearray()
        self._chunks = 0
        self._bytes = 0

    async def take_key(self, idempotency: Idempotency) -> bool:
        """Ties the key to this file; False when it is in use. Waits for whoever is about to write a file with it."""
        id_, owner_id, *_ = self._row
        key = (owner_id, idempotency.key, idempotency.fingerprint, id_)
        return await self._connection.fetchval(TAKE_KEY, *key) is not None

    async def write(self, data: bytes) -> None:
        self._waiting += data
        while len(self._waiting) >= CHUNK_BYTES:
            await self._store(bytes(self._waiting[:CHUNK_BYTES]))
            del self._waiting[:CHUNK_BYTES]

    async def close(self) -> Mapping[str, Any] | None:
        """The file's row; None when nothing was written, and then there is no file."""
        if self._waiting:
            await self._store(bytes(self._waiting))
            self._waiting.clear()
        if not self._chunks:
            return None
        row: Mapping[str, Any] = await self._connection.fetchrow(CLOSE, self._id, self._bytes)
        return row

    async def _store(self, chunk: bytes) -> None:
        if not self._chunks:
            await self._connection.execute(INSERT, *self._row)
        await self._connection.execute(INSERT_CHUNK, self._id, self._chunks, chunk)
        self._chunks += 1
        self._bytes += len(chunk)


async def used_exclusively(connection: Any, owner_id: int) -> tuple[int, datetime | None]:
    """As FileStore.used, within a transaction that adds a file: others that do wait for its end."""
    await connection.execute(LOCK_STORAGE, owner_id)
    used, next_end = await connection.fetchrow(USED, owner_id)
    return used, next_end


class FileStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, id_: UUID, owner_id: int) -> Mapping[str, Any] | None:
        async with self._database.hot() as connection:
            row: Mapping[str, Any] | None = await connection.fetchrow(GET, id_, owner_id)
        return row

    async def page(
        self, owner_id: int, after: UUID | None, purpose: str | None, limit: int, *, newest_first: bool
    ) -> Sequence[Mapping[str, Any]]:
        query = select(text(COLUMNS)).where(files.c.owner_id == owner_id, text(KNOWN)).limit(limit)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            query = query.where(files.c.id < after if newest_first else files.c.id > after)
        async with self._database.reading() as queries:
            return await queries.rows(query.order_by(files.c.id.desc() if newest_first else files.c.id))

    async def names(self, ids: Sequence[UUID], owner_id: int) -> dict[UUID, str]:
        async with self._database.hot() as connection:
            rows = await connection.fetch(NAMES, list(ids), owner_id)
        return {row["id"]: row["filename"] for row in rows}

    async def read(self, id_: UUID, place: Place) -> tuple[bytes, Place] | None:
        """What the file holds at the place, which is START at first, and the place behind it.

        None past the end, and when the file is gone.
        """
        async with self._database.hot() as connection:
            rows = await connection.fetch(CHUNKS, id_, *place)
        if not rows:
            return None
        last = rows[-1]
        end = len(last["data"]) + (place.offset if last["number"] == place.chunk else 0)
        behind = Place(last["number"], end) if end < last["bytes"] else Place(last["number"] + 1, 0)
        return b"".join(row["data"] for row in rows), behind

    async def exists(self, id_: UUID) -> bool:
        """Whether the file or the part is there."""
        async with self._database.hot() as connection:
            return bool(await connection.fetchval(EXISTS, id_))

    async def delete(self, id_: UUID, owner_id: int, actor: Actor) -> bool:
        """Removes a file; one of another key is noted in the audit log."""
        async with self._database.hot() as connection:
            return await connection.fetchval(DELETE, id_, owner_id, actor.key_id, actor.name) is not None

    async def used(self, owner_id: int) -> tuple[int, datetime | None]:
        """What the owner's files come to in bytes, and when the next of them expires."""
        async with self._database.hot() as connection:
            used, next_end = await connection.fetchrow(USED, owner_id)
        return used, next_end

    async def remove(self, older_than: UUID, limit: int) -> int:
        """Removes files that expired, and those made before the id `older_than`; returns how many."""
        async with self._database.hot() as connection:
            done: str = await connection.execute(REMOVE, older_than, limit)
        return int(done.split()[-1])
