"""The last log lines of every process, kept in Postgres, so that they can be read in one place."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import asyncpg

from app.background import ended
from app.config import NOTHING_KEPT, Settings
from app.db.engine import Database
from app.errors import DatabaseUnavailable
from app.queue.log_lines import MOST_KEPT, LogLineStore
from app.telemetry.ring import Line, Ring

LOGGER = "tickets"
ABOVE_ALL = logging.CRITICAL + 1
# Lines are written this often, and so many at once.
WRITE_SECONDS = 1.0
MOST_AT_ONCE = 500
AGAIN_SECONDS = 5.0
# Where Postgres is out of reach, a process that stops waits this long for its last lines.
LAST_SECONDS = 1.0
# What cannot be written now: Postgres is away, or has no such table yet.
FAULTS = (DatabaseUnavailable, asyncpg.PostgresError)


class Process(StrEnum):
    API = "api"
    DISPATCHER = "dispatcher"
    CAPACITY = "capacity"


@dataclass(frozen=True, slots=True)
class LogPage:
    """`next_before` is the cursor of the page with older lines, None on the last one."""

    rows: Sequence[Mapping[str, Any]]
    next_before: int | None


class ProcessLogs:
    def __init__(self, database: Database) -> None:
        self._store = LogLineStore(database)

    async def page(
        self, process: Process | None, level: int, text: str | None, limit: int, before: int | None = None
    ) -> LogPage:
        """Lines from `level` on, newest first; `text` is looked for whatever its case."""
        pattern = None if not text else f"%{_escaped(text)}%"
        rows = await self._store.newest(process, level, pattern, before, limit + 1)
        more = len(rows) > limit
        return LogPage(rows[:limit], rows[limit - 1]["id"] if more else None)


@asynccontextmanager
async def lines_kept(database: Database, process: Process, settings: Settings) -> AsyncIterator[None]:
    """Around the life of a process: its lines are kept, with one for its start and one for its end.

    Nobody waits for a line to be written, and nothing fails where none can be.
    """
    ring = Ring(_kept_from(settings))
    writer = _Writer(LogLineStore(database), ring, process, f"{socket.gethostname()}:{os.getpid()}")
    logger = logging.getLogger(LOGGER)
    logger.addHandler(ring)
    if settings.log_kept_level != NOTHING_KEPT:
        writer.note("started")
    task = asyncio.create_task(writer.run(), name="log lines")
    try:
        yield
    finally:
        logger.removeHandler(ring)
        if settings.log_kept_level != NOTHING_KEPT:
            writer.note("stopped")
        await ended([task])
        with suppress(TimeoutError, *FAULTS):
            async with asyncio.timeout(LAST_SECONDS):
                await writer.write()


def log_as_set(settings: Settings) -> None:
    """Has this process log, and keep its lines, from the levels on that are set now."""
    logger = logging.getLogger(LOGGER)
    logger.setLevel(settings.log_level)
    for handler in logger.handlers:
        if isinstance(handler, Ring):
            handler.setLevel(_kept_from(settings))


def _kept_from(settings: Settings) -> int:
    kept = settings.log_kept_level
    return ABOVE_ALL if kept == NOTHING_KEPT else logging.getLevelNamesMapping()[kept]


class _Writer:
    def __init__(self, store: LogLineStore, ring: Ring, process: Process, host: str) -> None:
        self._store, self._ring, self._process, self._host = store, ring, process, host
        self._untrimmed = MOST_KEPT

    def note(self, message: str, level: int = logging.INFO) -> None:
        self._ring.add(Line(datetime.now(UTC), level, "process", message))

    async def run(self) -> None:
        while True:
            pause = WRITE_SECONDS
            try:
                await self.write()
            except FAULTS:
                pause = AGAIN_SECONDS
            await asyncio.sleep(pause)

    async def write(self) -> None:
        """Writes what is held; what cannot be written is held on."""
        if self._ring.dropped:
            dropped, self._ring.dropped = self._ring.dropped, 0
            self.note(f"{dropped:,} lines came too quickly and were not kept", logging.WARNING)
        lines = self._ring.take(MOST_AT_ONCE)
        if not lines:
            return
        try:
            await self._store.add(self._process, self._host, lines)
        except BaseException:
            self._ring.give_back(lines)
            raise
        self._untrimmed += len(lines)
        if self._untrimmed >= MOST_KEPT // 10:
            await self._store.trim(self._process)
            self._untrimmed = 0


def _escaped(text: str) -> str:
    """As LIKE takes it literally."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
