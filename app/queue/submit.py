"""Submits on their way into Postgres: those that arrive while a statement is under way share the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from app.errors import DatabaseUnavailable
from app.queue.store import QueueStore
from app.queue.ticket import Submission

LARGEST_BATCH = 200


class Submitter:
    """A commit for many, and none waits for company: without load a submit goes out at once, alone."""

    def __init__(self, store: QueueStore) -> None:
        self._store = store
        self._waiting: list[tuple[Submission, asyncio.Future[bool]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def submit(self, submission: Submission) -> bool:
        """Stores a ticket, committed when this returns; False when it was left out as `QueueStore.submit` says.

        Raises:
            DatabaseUnavailable: nothing was stored.
        """
        if submission.idempotency is not None:
            # Keys may collide, and a statement may not meet the same key twice.
            return bool(await self._store.submit([submission]))
        stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((submission, stored))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await stored

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:LARGEST_BATCH], self._waiting[LARGEST_BATCH:]
            try:
                ids = await self._store.submit([submission for submission, _ in batch])
            except DatabaseUnavailable as error:
                _fail(batch, error)
            except Exception as error:
                await self._apart(batch, error)
            else:
                _tell(batch, ids)

    async def _apart(self, batch: Sequence[tuple[Submission, asyncio.Future[bool]]], error: Exception) -> None:
        """One ticket that cannot be stored must not take its neighbours down."""
        if len(batch) == 1:
            _fail(batch, error)
            return
        for each in batch:
            try:
                ids = await self._store.submit([each[0]])
            except Exception as its_own:
                await self._apart([each], its_own)
            else:
                _tell([each], ids)


def _fail(batch: Sequence[tuple[Submission, asyncio.Future[bool]]], error: Exception) -> None:
    for _, stored in batch:
        if not stored.done():
            stored.set_exception(error)


def _tell(batch: Sequence[tuple[Submission, asyncio.Future[bool]]], ids: set[UUID]) -> None:
    for submission, stored in batch:
        if not stored.done():
            stored.set_result(submission.id in ids)
