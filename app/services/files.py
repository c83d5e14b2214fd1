"""Stored files: what batches read and write, and tensors of contexts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from math import ceil
from typing import Any
from uuid import UUID

from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.errors import FileNotFound, InvalidRequest, Removed
from app.key_errors import StorageQuotaReached
from app.queue.files import START, FileStore, FileWriter, used_exclusively
from app.queue.store import QueueStore
from app.queue.ticket import Idempotency
from app.services.audit import actor_of
from app.services.callers import Caller
from app.services.idempotency import idempotency_of, made_before
from app.services.retention import removed_or
from app.services.standing import duration

INPUT, OUTPUT = "batch", "batch_output"
# For anything else: a context may name it as a tensor.
USER_DATA = "user_data"
UPLOADED = (INPUT, USER_DATA)
LONGEST_NAME = 255
# Each takes a connection while it is written; the others are for tickets.
UPLOADS_AT_ONCE = 2

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FilePage:
    rows: Sequence[Row]
    more: bool


class Files:
    def __init__(self, database: Database, queue: QueueStore, settings: Settings) -> None:
        self._store = FileStore(database)
        self._database = database
        self._queue = queue
        self._settings = settings
        self._owner_bytes = settings.max_owner_file_bytes
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def create(
        self,
        caller: Caller,
        purpose: str,
        filename: str,
        seconds: int | None,
        content: Callable[[], AsyncIterator[bytes]],
        idempotency_key: str | None = None,
    ) -> tuple[Row, bool]:
        """Stores a file, committed when this returns; True when an earlier request with the key had made it.

        Its `purpose` is one of UPLOADED. It is kept for `seconds` or without end. `content` begins anew each time it is
        called.

        Raises:
            InvalidRequest: it is empty.
            StorageQuotaReached: the owner's files would come to more than they may.
            IdempotencyMismatch: the key came with another request before.
        """
        idempotency = None
        if idempotency_key is not None:
            # The purpose that was once the only one is not told, so that keys of that time still fit.
            others = () if purpose == INPUT else (purpose,)
            idempotency = idempotency_of(idempotency_key, "file", filename, seconds, await _digest(content()), *others)
        while True:
            if earlier := await made_before(self._queue, caller.owner_id, idempotency):
                return await self.get(caller, earlier), True
            row = await self._store_once(caller, purpose, filename[:LONGEST_NAME], seconds, content, idempotency)
            if row is not None:
                return row, False

    async def _store_once(
        self,
        caller: Caller,
        purpose: str,
        filename: str,
        seconds: int | None,
        content: Callable[[], AsyncIterator[bytes]],
        idempotency: Idempotency | None,
    ) -> Row | None:
        """None when the key is in use."""
        async with self.writing() as connection:
            writer = FileWriter(connection, uuid7(), caller.owner_id, purpose, filename, seconds, caller.key_id)
            if idempotency is not None and not await writer.take_key(idempotency):
                return None
            async for part in content():
                await writer.write(part)
            row = await writer.close()
            if row is None:
                # Within the transaction, so that the key is free again.
                raise InvalidRequest("file: is empty", errors=[{"field": "file", "message": "is empty"}])
            await self.require_kept(connection, caller)
        return row

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Any]:
        """A transaction for a file or a part of one; few are open at once."""
        async with self._uploads, self._database.transaction() as connection:
            yield connection

    async def require_kept(self, connection: Any, caller: Caller) -> None:
        """Raises StorageQuotaReached where the transaction has added too much."""
        if quota := self._quota(caller):
            _require_quota(quota, 0, *await used_exclusively(connection, caller.owner_id))

    async def require_room(self, caller: Caller, size: int) -> None:
        """Raises StorageQuotaReached when a file of `size` bytes would not fit."""
        if quota := self._quota(caller):
            _require_quota(quota, size, *await self._store.used(caller.owner_id))

    def _quota(self, caller: Caller) -> int:
        """In bytes; 0 for none."""
        return caller.storage_bytes or self._owner_bytes

    async def get(self, caller: Caller, id_: UUID) -> Row:
        """Raises FileNotFound, or Removed when the retention took it."""
        row = await self._store.get(id_, caller.owner_id)
        if row is None:
            raise removed_or(
                id_,
                self._settings.result_retention_days,
                FileNotFound(
                    f"No file has the id file-{id_.hex}, or it has expired. GET /v1/files lists those there are."
                ),
            )
        return row

    async def page(
        self, caller: Caller, after: UUID | None, purpose: str | None, limit: int, *, newest_first: bool
    ) -> FilePage:
        rows = await self._store.page(caller.owner_id, after, purpose, limit + 1, newest_first=newest_first)
        return FilePage(rows[:limit], len(rows) > limit)

    async def names(self, caller: Caller, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Of those that are still there."""
        return await self._store.names(ids, caller.owner_id)

    async def content(self, row: Row) -> AsyncIterator[bytes]:
        """The parts of a file, which come to its `bytes`.

        Raises:
            Removed: it was deleted in the middle.
        """
        sent, place = 0, START
        while sent < row["bytes"]:
            found = await self._store.read(row["id"], place)
            if found is None:
                raise Removed(f"file-{row['id'].hex} was deleted while it was read.")
            part, place = found
            yield part
            sent += len(part)

    async def content_so_far(self, row: Row) -> AsyncIterator[bytes]:
        """What there is of a part of a batch that has not ended; lines that come meanwhile may be left out.

        Raises:
            Removed: it ended in the middle.
        """
        place = START
        while found := await self._store.read(row["id"], place):
            part, place = found
            yield part
        if not await self._store.exists(row["id"]):
            raise Removed("The batch ended while its answers so far were read: its files are there now.")

    async def delete(self, caller: Caller, id_: UUID) -> None:
        """Raises FileNotFound."""
        await self.get(caller, id_)
        await self._store.delete(id_, caller.owner_id, actor_of(caller))


def _require_quota(quota: int, size: int, used: int, next_end: datetime | None) -> None:
    if used + size <= quota:
        return
    headers = {}
    ends = "None of them expires."
    if next_end is not None:
        seconds = max(1, ceil((next_end - datetime.now(UTC)).total_seconds()))
        headers["Retry-After"] = str(seconds)
        ends = f"The next of them expires in {duration(seconds)}."
    raise StorageQuotaReached(
        f"The files of this owner may come to {quota:,} bytes, and with this one they would come to more: delete some "
        f"with DELETE /v1/files/{{id}}, and upload with `expires_after`. {ends}",
        headers=headers,
        limit="storage_bytes",
    )


async def _digest(content: AsyncIterator[bytes]) -> str:
    digest = sha256()
    async for part in content:
        digest.update(part)
    return digest.hexdigest()
