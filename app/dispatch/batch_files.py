"""The files of batches: written while the lines finish, so that little is left to do once the last one is final."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic_core import from_json

from app.background import Pace
from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.errors import DatabaseUnavailable
from app.queue.batch_parts import BatchParts, Chunk
from app.queue.batch_work import BatchWork, LeaseLost
from app.queue.bulk import statements_of
from app.queue.files import CHUNK_BYTES
from app.queue.ticket import EXPIRED
from app.services.files import OUTPUT
from app.services.pages import SLICE_BYTES
from app.telemetry import logger

log = logger("batches")

# The lines of a batch that still runs are written when there are so many.
LEAST_LINES = 200
# While a batch may end before the next count, its end is looked for this often.
NEAR_LINES = 2000
CHECK_SECONDS = 0.2
ROWS_AT_ONCE = 500
# A writer that is killed keeps the others from its batch for so long at most. Each step is fenced and short: one that
# is only slow, and so loses its batch, loses the step alone.
LEASE_SECONDS = 10.0
WRITTEN_BYTES = 8 * CHUNK_BYTES
DEFECTS_LOGGED = 10
# Of the lines that failed, the batch names the first.
FAILURES_SHOWN = 10

Row = Mapping[str, Any]
# Of a batch and one of its results: the line, and whether it is for the output file (else the error file).
Render = Callable[[Row, Row], tuple[bool, bytes]]
# The line of the error file for a result that could not be rendered.
RenderDefective = Callable[[Row], bytes]


@dataclass
class Tally:
    """What the lines written so far come to; kept in the batch's row."""

    completed: int = 0
    failed: int = 0
    defective: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    expired: bool = False
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: Row, completed: bool, line: bytes) -> None:
        if completed:
            self.completed += 1
        else:
            self.failed += 1
            self._show(row["batch_line"], line)
        self.prompt_tokens += row["prompt_tokens"] or 0
        self.completion_tokens += row["completion_tokens"] or 0
        self.expired = self.expired or row["error_code"] == EXPIRED

    def _show(self, number: int, line: bytes) -> None:
        if len(self.failures) == FAILURES_SHOWN and self.failures[-1]["line"] < number:
            return
        document = from_json(line)
        error = document["error"] or document["response"]["body"]["error"]
        told = {"line": number, "code": error["code"], "message": error["message"], "param": error.get("param")}
        self.failures = sorted([*self.failures, told], key=lambda each: each["line"])[:FAILURES_SHOWN]


class Waiting:
    """Lines that are rendered and not stored yet; those that follow each other share a chunk."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []
        self.chunks: list[Chunk] = []
        self.bytes = 0
        self._open: dict[bool, Chunk] = {}

    def add(self, number: int, completed: bool, line: bytes) -> None:
        if self.runs and self.runs[-1][1] == number - 1:
            self.runs[-1] = (self.runs[-1][0], number)
        else:
            self.runs.append((number, number))
            self._open.clear()
        chunk = self._open.get(completed)
        if chunk is None or len(chunk.data) + len(line) > CHUNK_BYTES:
            chunk = self._open[completed] = Chunk(completed, number, bytearray())
            self.chunks.append(chunk)
        chunk.data.extend(line)
        self.bytes += len(line)


class BatchFiles:
    """Writes the files of batches, and ends those whose lines are all final.

    Each step is one statement under the batch's lease: whoever dies in between leaves nothing half done, and whoever
    outlived the lease changes nothing.
    """

    def __init__(
        self, database: Database, settings: Settings, render: Render, render_defective: RenderDefective
    ) -> None:
        self._work = BatchWork(database)
        self._parts = BatchParts(database)
        self._lease_seconds = min(settings.lease_seconds, LEASE_SECONDS)
        self._poll_seconds = settings.poll_seconds
        self._render = render
        self._render_defective = render_defective

    async def run(self) -> None:
        """Writes until cancelled; the batch under way then is left to another dispatcher."""
        while True:
            pause = self._poll_seconds
            with suppress(DatabaseUnavailable):
                left = await self._work.lines_left()
                if left is not None:
                    await self._look()
                    if left <= NEAR_LINES:
                        pause = min(pause, CHECK_SECONDS)
            await asyncio.sleep(pause)

    async def _look(self) -> None:
        while batch := await self._work.take_to_finalize(self._lease_seconds):
            await self._hold(batch, self._finalize(batch))
        if batch := await self._work.take_to_write(self._lease_seconds, LEAST_LINES):
            await self._hold(batch, self._write(batch))

    async def _hold(self, batch: Row, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await self._work.hold(batch, work, self._lease_seconds)
        except LeaseLost:
            log.info("a batch was cancelled, or taken by another dispatcher, while it was written", batch=batch["id"])
        except (DatabaseUnavailable, asyncio.CancelledError):
            with suppress(DatabaseUnavailable):
                await self._work.give_back(batch, 0.0, count=False)
            raise
        except Exception:
            # Its lease runs out, and then it is tried again.
            log.exception("a defect of the dispatcher ended the writing of a batch", batch=batch["id"])
            return
        # Unless it has ended, or is another's.
        await self._work.give_back(batch, 0.0, count=False)

    async def _write(self, batch: Row) -> Tally:
        """Writes what is final and not written yet; what all that is written comes to."""
        tally = Tally(**batch["tally"] or {})
        unwritten = await self._parts.unwritten(batch)
        for few in statements_of(unwritten, ROWS_AT_ONCE, lambda row: row["bytes"], SLICE_BYTES):
            await self._write_few(batch, [row["batch_line"] for row in few], tally)
        return tally

    async def _write_few(self, batch: Row, numbers: Sequence[int], tally: Tally) -> None:
        waiting, pace = Waiting(), Pace()
        for row in await self._parts.lines(batch, numbers):
            completed, line = self._rendered(batch, row, tally)
            waiting.add(row["batch_line"], completed, line)
            tally.add(row, completed, line)
            if waiting.bytes >= WRITTEN_BYTES:
                await self._store(batch, waiting, tally)
                waiting = Waiting()
            await pace.step()
        if waiting.runs:
            await self._store(batch, waiting, tally)

    async def _store(self, batch: Row, waiting: Waiting, tally: Tally) -> None:
        await self._parts.write(batch, OUTPUT, waiting.runs, waiting.chunks, asdict(tally))

    def _rendered(self, batch: Row, row: Row, tally: Tally) -> tuple[bool, bytes]:
        try:
            return self._render(batch, row)
        except Exception:
            # Tried again, it would fail again: one answer must not keep back all the others.
            tally.defective += 1
            if tally.defective <= DEFECTS_LOGGED:
                log.exception(
                    "a defect of the service kept an answer out of a batch", batch=batch["id"], result=row["id"]
                )
            return False, self._render_defective(row)

    async def _finalize(self, batch: Row) -> None:
        began = time.monotonic()
        tally = await self._write(batch)
        status = "completed"
        if batch["status"] == "cancelling":
            status = "cancelled"
        elif tally.expired:
            status = "expired"
        await self._parts.finish(
            batch,
            status,
            (uuid7() if tally.completed else None, uuid7() if tally.failed else None),
            (tally.completed, tally.failed, tally.prompt_tokens, tally.completion_tokens),
            {"total": tally.failed, "data": tally.failures} if tally.failures else None,
        )
        log.info(
            "batch ended",
            batch=batch["id"],
            status=status,
            completed=tally.completed,
            failed=tally.failed,
            defective=tally.defective,
            seconds=round(time.monotonic() - began, 2),
        )
