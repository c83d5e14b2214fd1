"""Files that come in parts, each a request of its own."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.db.engine import Database
from app.db.ids import uuid7
from app.errors import FileNotFound, PartNotFound, UploadEnded, UploadNotFound, invalid
from app.queue.files import FileWriter
from app.queue.uploads import OpenUpload, UploadStore, upload_to_add, upload_to_end
from app.services.callers import Caller
from app.services.files import INPUT, LONGEST_NAME, Files

# From its creation to its expiry, as at OpenAI.
SECONDS = 3600.0

Row = Mapping[str, Any]


class Uploads:
    def __init__(self, database: Database, files: Files) -> None:
        self._store = UploadStore(database)
        self._files = files

    async def create(self, caller: Caller, filename: str, size: int, file_seconds: int | None) -> Row:
        """Begins an upload of `size` bytes, whose file is kept for `file_seconds` or without end.

        Raises:
            StorageQuotaReached: the owner's files would come to more than they may.
        """
        await self._files.require_room(caller, size)
        return await self._store.create(
            uuid7(), caller.owner_id, INPUT, filename[:LONGEST_NAME], size, file_seconds, SECONDS
        )

    async def get(self, caller: Caller, id_: UUID) -> tuple[Row, Row | None]:
        """An upload, and its file if it has one that is still there; raises UploadNotFound."""
        row = await self._store.get(id_, caller.owner_id)
        if row is None:
            raise _missing(id_)
        return row, await self._file(caller, row)

    async def require_open(self, caller: Caller, id_: UUID) -> None:
        """Raises UploadNotFound, or UploadEnded where it takes no parts."""
        _require_pending((await self.get(caller, id_))[0])

    async def add_part(self, caller: Caller, id_: UUID, content: AsyncIterator[bytes]) -> Row:
        """The part's row, committed when this returns.

        Raises:
            UploadNotFound: no such upload.
            UploadEnded: it takes no parts.
            InvalidRequest: the part is empty.
            StorageQuotaReached: the owner's files would come to more than they may.
        """
        async with self._files.writing() as connection:
            upload = await upload_to_add(connection, id_, caller.owner_id)
            if upload is None:
                raise _missing(id_)
            _require_pending(upload)
            seconds = (upload["expires_at"] - datetime.now(UTC)).total_seconds()
            writer = FileWriter(
                connection, uuid7(), caller.owner_id, INPUT, "", seconds, caller.key_id, upload_id=upload["id"]
            )
            async for piece in content:
                await writer.write(piece)
            row = await writer.close()
            if row is None:
                raise invalid("data", "is empty")
            await self._files.require_kept(connection, caller)
        return row

    async def complete(
        self, caller: Caller, id_: UUID, part_ids: Sequence[UUID], md5: str | None
    ) -> tuple[Row, Row | None]:
        """The upload and its file, made of the parts in this order; one that is complete stays as it is.

        Raises:
            UploadNotFound, PartNotFound: no such upload, or it has no such part.
            UploadEnded: it was cancelled, or expired.
            InvalidRequest: the parts come to another size, or to another MD5 sum than `md5`.
        """
        async with self._ending(caller, id_) as upload:
            if upload.row["status"] == "completed":
                return upload.row, await self._file(caller, upload.row)
            _require_pending(upload.row)
            parts = await upload.parts()
            for part_id in part_ids:
                if part_id not in parts:
                    raise PartNotFound(f"upload_{id_.hex} has no part with the id part_{part_id.hex}.")
            size = sum(parts[part_id] for part_id in part_ids)
            if size != upload.row["bytes"]:
                raise invalid(
                    "part_ids",
                    f"are of {size:,} bytes, and the upload was begun with {upload.row['bytes']:,}: name every part "
                    "once, and add what is missing",
                )
            if md5 is not None:
                digest = hashlib.md5(usedforsecurity=False)
                async for chunk in upload.content(parts, part_ids):
                    digest.update(chunk)
                if digest.hexdigest() != md5.lower():
                    raise invalid(
                        "md5", f"is not that of the parts in this order, which is {digest.hexdigest()}: nothing changed"
                    )
            return await upload.complete(uuid7(), caller.key_id, part_ids)

    async def cancel(self, caller: Caller, id_: UUID) -> Row:
        """Removes the parts; raises UploadNotFound, or UploadEnded when it is complete or expired."""
        async with self._ending(caller, id_) as upload:
            if upload.row["status"] == "cancelled":
                return upload.row
            _require_pending(upload.row)
            return await upload.cancel()

    @asynccontextmanager
    async def _ending(self, caller: Caller, id_: UUID) -> AsyncIterator[OpenUpload]:
        async with self._files.writing() as connection:
            upload = await upload_to_end(connection, id_, caller.owner_id)
            if upload is None:
                raise _missing(id_)
            yield upload

    async def _file(self, caller: Caller, upload: Row) -> Row | None:
        if upload["file_id"] is None:
            return None
        try:
            return await self._files.get(caller, upload["file_id"])
        except FileNotFound:
            return None


def _require_pending(upload: Row) -> None:
    status = upload["status"]
    if status != "pending":
        raise UploadEnded(f"upload_{upload['id'].hex} is {status}: begin another one with POST /v1/uploads.")


def _missing(id_: UUID) -> UploadNotFound:
    return UploadNotFound(
        f"No upload has the id upload_{id_.hex}; one that was not completed is gone a day after it expired."
    )
