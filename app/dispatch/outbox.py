"""Ends of attempts on their way into Postgres, many to a statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

import asyncpg

from app.errors import DatabaseUnavailable
from app.queue.statements import IDS_PER_NOTIFY
from app.queue.store import QueueStore
from app.queue.ticket import Generated, Outcome, Release, Settlement, Status
from app.telemetry import logger

log = logger("outbox")

RETRY_SECONDS = 0.5
End = TypeVar("End", Settlement, Release)


class Outbox:
    """Collects while a statement is under way, so that batches grow with the load and wait for nothing without it.

    `confirm` is awaited with the tokens that are about to end, `written` called with those that are done with, whether
    the row still was ours or not. Statements hold `writing`.
    """

    def __init__(
        self,
        store: QueueStore,
        writing: asyncio.Lock,
        confirm: Callable[[Sequence[UUID]], Awaitable[None]],
        written: Callable[[Sequence[UUID]], None],
    ) -> None:
        self._store = store
        self._writing = writing
        self._confirm = confirm
        self._written = written
        self._ends: list[Settlement | Release] = []
        self._filled = asyncio.Event()

    def put(self, end: Settlement | Release) -> None:
        self._ends.append(end)
        self._filled.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._filled.wait()
            await self.flush()

    async def flush(self) -> None:
        """Writes what there is; keeps trying while Postgres is away."""
        self._filled.clear()
        ends, self._ends = self._ends, []
        settlements = [end for end in ends if isinstance(end, Settlement)]
        releases = [end for end in ends if isinstance(end, Release)]
        for start in range(0, len(settlements), IDS_PER_NOTIFY):
            await self._write(settlements[start : start + IDS_PER_NOTIFY], self._store.settle, _unstorable)
        for start in range(0, len(releases), IDS_PER_NOTIFY):
            await self._write(releases[start : start + IDS_PER_NOTIFY], self._store.release, None)

    async def _write(
        self,
        batch: list[End],
        statement: Callable[[Sequence[End]], Awaitable[set[UUID]]],
        substitute: Callable[[End], End] | None,
    ) -> None:
        while True:
            try:
                async with self._writing:
                    await self._confirm([end.token for end in batch])
                    done = await statement(batch)
                break
            except DatabaseUnavailable:
                log.warning("postgres is away, the ends of attempts wait", waiting=len(batch))
                await asyncio.sleep(RETRY_SECONDS)
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                # One row that Postgres refuses must not hold up the others.
                if len(batch) > 1:
                    middle = len(batch) // 2
                    await self._write(batch[:middle], statement, substitute)
                    await self._write(batch[middle:], statement, substitute)
                    return
                log.error("postgres refused the end of an attempt", result=batch[0].id, error=str(error))
                if substitute is None:
                    done = set()
                    break
                batch, substitute = [substitute(batch[0])], None
        for end in batch:
            if end.id not in done:
                log.warning("the claim was lost before its end was written", result=end.id)
        self._written([end.token for end in batch])


def _unstorable(settlement: Settlement) -> Settlement:
    return replace(
        settlement,
        status=Status.FAILED,
        outcome=Outcome.FAILED,
        generated=Generated(),
        error_code="answer_not_storable",
        error_message="The engine's answer cannot be stored in Postgres.",
    )
