"""Batches: thousands of requests in a file, answered in a file within a day."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.errors import BatchEnded, BatchNotEnded, BatchNotFound, InvalidRequest
from app.queue.batch_parts import BatchParts, part_id
from app.queue.batches import RETRY_OF, BatchStore
from app.queue.store import QueueStore
from app.services.audit import actor_of
from app.services.callers import Caller
from app.services.files import INPUT, Files
from app.services.idempotency import idempotency_of, made_before
from app.services.lines import lines_of
from app.services.pages import Window
from app.services.retention import removed_or
from app.services.wishes import Wish

WINDOW = "24h"
WINDOW_SECONDS = 24 * 3600
FINAL = ("completed", "failed", "expired", "cancelled")
FAILURES_SHOWN = 10
RETRIES_SHOWN = 5

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BatchPage:
    rows: Sequence[Row]
    more: bool


class Batches:
    def __init__(self, database: Database, queue: QueueStore, files: Files, settings: Settings) -> None:
        self._store = BatchStore(database)
        self._parts = BatchParts(database)
        self._queue = queue
        self._files = files
        self._settings = settings
        self._longest_line = settings.max_body_bytes
        # Set for the loader of this process.
        self.arrived = asyncio.Event()

    async def create(
        self,
        caller: Caller,
        input_file_id: UUID,
        endpoint: str,
        metadata: dict[str, str] | None,
        output_seconds: int | None,
        wish: Wish,
        idempotency_key: str | None,
    ) -> tuple[Row, bool]:
        """A batch to be validated; True when an earlier request with the key had made it.

        `output_seconds` is how long its output files are kept, None for no end; the `wish` is that of each line.

        Raises:
            FileNotFound: no such file.
            InvalidRequest: the file is no batch's input.
            IdempotencyMismatch: the key came with another request before.
        """
        file = await self._files.get(caller, input_file_id)
        if file["purpose"] != INPUT:
            message = f"has the purpose {file['purpose']}; upload the requests with the purpose {INPUT}"
            raise InvalidRequest(f"input_file_id: {message}", errors=[{"field": "input_file_id", "message": message}])
        asked = (input_file_id, endpoint, metadata, output_seconds, *wish.distinct)
        idempotency = idempotency_of(idempotency_key, "batch", *asked)
        while True:
            row = await self._store.create(
                uuid7(),
                caller.owner_id,
                caller.key_id,
                endpoint,
                input_file_id,
                metadata,
                output_seconds,
                wish.stored,
                caller.webhook,
                idempotency,
                WINDOW_SECONDS,
            )
            if row is not None:
                self.arrived.set()
                return row, False
            # The key may have run out between the two statements: then it is free.
            if earlier := await made_before(self._queue, caller.owner_id, idempotency):
                return await self.get(caller, earlier), True

    async def get(self, caller: Caller, id_: UUID) -> Row:
        """Raises BatchNotFound, or Removed when the retention took it."""
        row = await self._store.get(id_, caller.owner_id)
        if row is None:
            raise removed_or(
                id_,
                self._settings.result_retention_days,
                BatchNotFound(f"No batch has the id batch_{id_.hex}. GET /v1/batches lists those there are."),
            )
        return row

    async def page(self, caller: Caller, window: Window, statuses: Sequence[str] | None = None) -> BatchPage:
        """Newest first; of all statuses, or of these."""
        limit, created = window.limit, (window.created_after, window.created_before)
        rows = await self._store.page(caller.owner_id, window.after, limit + 1, statuses, *created)
        return BatchPage(rows[:limit], len(rows) > limit)

    async def cancel(self, caller: Caller, id_: UUID) -> Row:
        """Begins to cancel; what is done until then is kept. One that is being cancelled is returned as it is.

        Raises:
            BatchNotFound: no such batch.
            BatchEnded: it has ended, or its files are being written.
        """
        row = await self._store.cancel(id_, caller.owner_id, actor_of(caller))
        if row is not None:
            return row
        row = await self.get(caller, id_)
        if row["status"] not in ("cancelling", "cancelled"):
            raise BatchEnded(f"The batch is {row['status']}: there is nothing left to cancel.")
        return row

    async def failures(self, caller: Caller, id_: UUID) -> list[Row]:
        """The errors of its lines that failed so far, the most frequent first, each with its first ticket.

        Raises as `get`.
        """
        await self.get(caller, id_)
        return await self._store.failures(id_, FAILURES_SHOWN)

    async def retries(self, caller: Caller, id_: UUID) -> list[Row]:
        """The batches that tried failed lines of this one again, the first one first."""
        return await self._store.retries(caller.owner_id, id_, RETRIES_SHOWN)

    async def pending(self, id_: UUID) -> UUID | None:
        """A ticket of the batch that runs, or else one that waits; None where none does."""
        return await self._store.pending(id_)

    async def files_so_far(self, batch: Row) -> dict[bool, Row]:
        """Of a batch of `get` that has not ended, the answers (True) and errors (False) so far, where there are any."""
        parts = await self._parts.parts(batch["id"])
        ids = {done: part_id(batch["id"], completed=done) for done in (True, False)}
        return {done: parts[id_] for done, id_ in ids.items() if id_ in parts}

    async def retry_failed(self, caller: Caller, id_: UUID, error_code: str | None = None) -> Row:
        """A new batch of the lines that failed in one that has ended, or of those with this error.

        Its input is a file of these lines.

        Raises:
            BatchNotFound: no such batch.
            BatchNotEnded: it has not ended.
            BatchEnded: no line of it failed, or none with this error, or none was ever run.
            FileNotFound: its input is not kept any more.
            StorageQuotaReached: there is no room for the file.
        """
        old = await self.get(caller, id_)
        if old["status"] not in FINAL:
            raise BatchNotEnded(f"The batch is {old['status']}: wait for its end, or cancel it first.")
        numbers = await self._store.failed_lines(id_, error_code)
        if not numbers:
            so = "" if error_code is None else f" with {error_code}"
            raise BatchEnded(f"The batch is {old['status']}, and no line of it failed{so}: there is nothing to retry.")
        source = await self._files.get(caller, old["input_file_id"])

        async def content() -> AsyncIterator[bytes]:
            async for number, line in lines_of(self._files.content(source), self._longest_line):
                if number in numbers and line is not None:
                    yield line + b"\n"

        name = f"{source['filename'].removesuffix('.jsonl')[:200]}.retry.jsonl"
        file, _ = await self._files.create(caller, INPUT, name, None, content)
        metadata = (old["metadata"] or {}) | {RETRY_OF: f"batch_{id_.hex}"}
        seconds, wish = old["output_seconds"], Wish.of(old["wish"])
        row, _ = await self.create(caller, file["id"], old["endpoint"], metadata, seconds, wish, None)
        return row
