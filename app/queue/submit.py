"""New rows on their way into Postgres: those that arrive while a statement is under way share the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple
from uuid import UUID

from app.errors import DatabaseUnavailable
from app.queue.bulk import statements_of, write_apart
from app.queue.store import SubmissionRow

LARGEST_BATCH = 200


class _Waiting(NamedTuple):
    id: UUID
    row: SubmissionRow
    stored: asyncio.Future[bool]


class Submitter:
    """A commit for many, and none waits for company: without load a row goes out at once, alone.

    `store` writes rows in one statement and returns the ids of those it stored; `size` is what a row takes of it.
    """

    def __init__(
        self, store: Callable[[Sequence[SubmissionRow]], Awaitable[set[UUID]]], size: Callable[[SubmissionRow], int]
    ) -> None:
        self._store = store
        self._size = size
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def submit(self, id_: UUID, row: SubmissionRow, *, keyed: bool = False) -> bool:
        """Stores a row, committed when this returns; False when it was left out.

        Raises:
            DatabaseUnavailable: nothing was stored.
        """
        if keyed:
            # Keys may collide, and a statement may not meet the same key twice.
            return id_ in await self._store([row])
        waiting = _Waiting(id_, row, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        return await waiting.stored

    async def _write_all(self) -> None:
        while self._waiting:
            batch = next(statements_of(self._waiting, LARGEST_BATCH, lambda each: self._size(each.row)))
            del self._waiting[: len(batch)]
            await write_apart(batch, self._write, _refused)

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        try:
            ids = await self._store([each.row for each in batch])
        except DatabaseUnavailable as error:
            for each in batch:
                await _refused(each, error)
        else:
            for each in batch:
                if not each.stored.done():
                    each.stored.set_result(each.id in ids)


async def _refused(waiting: _Waiting, error: Exception) -> None:
    if not waiting.stored.done():
        waiting.stored.set_exception(error)
