"""Stored files: what batches read, and what they write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.errors import FileNotFound, InvalidRequest, Removed
from app.queue.files import FileStore, FileWriter
from app.services.callers import Caller
from app.services.retention import removed_or

INPUT, OUTPUT = "batch", "batch_output"
LONGEST_NAME = 255
# Each takes a connection while it is written; the others are for tickets.
UPLOADS_AT_ONCE = 2

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FilePage:
    rows: list[Row]
    more: bool


class Files:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._store = FileStore(database)
        self._database = database
        self._retention_days = settings.result_retention_days
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def create(self, caller: Caller, filename: str, seconds: int | None, content: AsyncIterator[bytes]) -> Row:
        """Stores a batch's input, kept for `seconds` or without end; committed when this returns.

        Raises:
            InvalidRequest: it is empty.
        """
        async with self._uploads, self._database.transaction() as connection:
            writer = FileWriter(connection, uuid7(), caller.owner_id, INPUT, filename[:LONGEST_NAME], seconds)
            async for part in content:
                await writer.write(part)
            row = await writer.close()
        if row is None:
            raise InvalidRequest("file: is empty", errors=[{"field": "file", "message": "is empty"}])
        return row

    async def get(self, caller: Caller, id_: UUID) -> Row:
        """Raises FileNotFound, or Removed when the retention took it."""
        row = await self._store.get(id_, caller.owner_id)
        if row is None:
            raise removed_or(
                id_,
                self._retention_days,
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

    async def content(self, row: Row) -> AsyncIterator[bytes]:
        """The parts of a file, which come to its `bytes`.

        Raises:
            Removed: it was deleted in the middle.
        """
        sent = number = 0
        while sent < row["bytes"]:
            part = await self._store.chunk(row["id"], number)
            if part is None:
                raise Removed(f"file-{row['id'].hex} was deleted while it was read.")
            yield part
            sent += len(part)
            number += 1

    async def delete(self, caller: Caller, id_: UUID) -> None:
        """Raises FileNotFound."""
        await self.get(caller, id_)
        await self._store.delete(id_, caller.owner_id)
