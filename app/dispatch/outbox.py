"""Ends of attempts on their way into Postgres, many to a statement."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar
from uuid import UUID

from app.db.faults import is_of_the_row, is_too_large, may_be_the_statement
from app.db.tables.results import SettledColumns
from app.errors import DatabaseUnavailable
from app.queue.bulk import statements_of, write_apart
from app.queue.statements.channels import IDS_PER_NOTIFY
from app.queue.store import QueueStore
from app.queue.ticket import Outcome, Release, Settlement, Status
from app.telemetry import logger

log = logger("outbox")

RETRY_SECONDS = 0.5
# One that is refused for no fault of its own is tried this often, after a pause that doubles: a minute in all.
MAX_TRIES = 8
# A statement that ends in an error which may be its own is tried this often before it is halved.
MAX_AMBIGUOUS_TRIES = 4
NOT_STORABLE, TOO_LARGE = "answer_not_storable", "answer_too_large"
End = Settlement | Release
Kind = TypeVar("Kind", Settlement, Release)


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
        self._ends: list[End] = []
        self._filled = asyncio.Event()
        # By token: how often an end was refused.
        self._tries: Counter[UUID] = Counter()

    def put(self, end: End) -> None:
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
        for batch in statements_of(settlements, IDS_PER_NOTIFY, lambda end: end.size):
            await write_apart(batch, partial(self._write, self._store.settle), self._refused)
        releases = [end for end in ends if isinstance(end, Release)]
        for small in statements_of(releases, IDS_PER_NOTIFY, lambda end: len(end.error_message or "")):
            await write_apart(small, partial(self._write, self._store.release), self._refused)

    async def _write(self, statement: Callable[[Sequence[Kind]], Awaitable[set[UUID]]], batch: Sequence[Kind]) -> None:
        tokens = [end.token for end in batch]
        ambiguous = 0
        while True:
            try:
                async with self._writing:
                    await self._confirm(tokens)
                    done = await statement(batch)
                break
            except DatabaseUnavailable as error:
                ambiguous += may_be_the_statement(error.__cause__)
                if ambiguous >= MAX_AMBIGUOUS_TRIES and isinstance(error.__cause__, Exception):
                    raise error.__cause__ from None
                log.warning("postgres is away, the ends of attempts wait", waiting=len(batch))
                await asyncio.sleep(RETRY_SECONDS)
        for end in batch:
            if end.id not in done:
                log.warning("the claim was lost before its end was written", result=end.id)
            self._tries.pop(end.token, None)
        self._written(tokens)

    async def _refused(self, end: End, error: Exception) -> None:
        self._tries[end.token] += 1
        tries = self._tries[end.token]
        log.error("postgres refused the end of an attempt", result=end.id, tries=tries, error=repr(error))
        if not is_of_the_row(error) and tries < MAX_TRIES:
            asyncio.get_running_loop().call_later(RETRY_SECONDS * 2 ** (tries - 1), self.put, end)
            return
        del self._tries[end.token]
        plain = _plain(end, error)
        if plain != end:
            self.put(plain)
            return
        log.error("the claim is left to its lease", result=end.id)
        self._written([end.token])


def _plain(end: End, error: Exception) -> End:
    """The end without anything that came from an engine or a server: what cannot be refused for what it holds."""
    if isinstance(end, Release):
        return replace(
            end,
            server=None,
            error_code="internal_error",
            error_message="The end of this attempt cannot be stored.",
            gpu_seconds=0.0,
            cost=None,
        )
    code, message = NOT_STORABLE, "The engine's answer cannot be stored in Postgres."
    if is_too_large(error):
        code, message = TOO_LARGE, "The engine's answer is larger than Postgres can store: ask for less."
    return replace(
        end,
        status=Status.FAILED,
        outcome=Outcome.FAILED,
        server=None,
        answer=SettledColumns(),
        files=(),
        error_code=code,
        error_message=message,
        gpu_seconds=0.0,
        cost=None,
    )
