"""The lines of a file on their way through the checks: in order, and few at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from app.background import Pace, ended
from app.services.checkers import Checkers, CheckersDied
from app.services.line_checks import CheckedLine, LineChecks, LinesOf, Part
from app.services.line_gathering import Gathered
from app.services.lines import LineError, lines_of
from app.telemetry import logger

log = logger("batches")

PART_BYTES = 256 * 1024
# What a line takes besides its text.
LINE_BYTES = 64
PARTS_AT_ONCE = 4
# A file of more bytes is worth the time that a process takes to start.
LARGE_FILE_BYTES = 1024 * 1024


async def read(
    content: AsyncIterator[bytes],
    size: int,
    lines: LinesOf,
    checks: LineChecks,
    gathered: Gathered,
    checkers: Checkers | None,
) -> None:
    """Gathers what becomes of the lines of a file of about `size` bytes; without `checkers` all are checked here.

    Raises:
        DatabaseUnavailable: nothing can be said of some line now.
    """
    parts, pace = parts_of(lines_of(content, lines.longest)), Pace()

    async def here(part: Part) -> list[CheckedLine]:
        checked = []
        for place in range(len(part.lines)):
            checked.append(await checks.check(part, place))
            await pace.step()
        return checked

    async def apart(part: Part) -> list[CheckedLine]:
        assert checkers is not None
        return await checkers.check(part, lines)

    large = checkers is not None and size > LARGE_FILE_BYTES
    checked_parts = in_order(parts, apart, PARTS_AT_ONCE) if large else in_order(parts, here, 1)
    try:
        async with aclosing(checked_parts):
            async for part, checked in checked_parts:
                for place, line in enumerate(checked):
                    gathered.take(await checks.check(part, place) if line.undecided else line)
                    if gathered.full:
                        return
                    await pace.step()
    except CheckersDied as died:
        log.error("checkers died one after the other", batch=lines.batch_id, lines=str(died))
        gathered.refuse(None, LineError("checkers_died", _died(died)))
    if not gathered.count and not gathered.problems:
        gathered.refuse(None, LineError("empty_file", "The file has no lines."))


async def parts_of(lines: AsyncIterator[tuple[int, bytes | None]]) -> AsyncIterator[Part]:
    """Lines with something in them, about PART_BYTES at a time, or one that is longer."""
    first = int(time.time() * 1000)
    taken: list[tuple[int, bytes | None]] = []
    size = number = 0
    async for line in lines:
        text = line[1]
        if text is not None and not text.strip():
            continue
        taken.append(line)
        size += LINE_BYTES + len(text or b"")
        if size >= PART_BYTES:
            yield Part(first + number, taken)
            taken, size, number = [], 0, number + 1
    if taken:
        yield Part(first + number, taken)


async def in_order(
    parts: AsyncIterator[Part], check: Callable[[Part], Coroutine[Any, Any, list[CheckedLine]]], at_once: int
) -> AsyncGenerator[tuple[Part, list[CheckedLine]]]:
    """Each part with what came of it, where `at_once` of them are under way."""
    under_way: deque[tuple[Part, asyncio.Task[list[CheckedLine]]]] = deque()

    async def first() -> tuple[Part, list[CheckedLine]]:
        part, task = under_way[0]
        # Not awaited itself: whoever is cancelled here ends all of them at once, before the next one starts a process.
        await asyncio.wait({task})
        checked = task.result()
        under_way.popleft()
        return part, checked

    try:
        async for part in parts:
            under_way.append((part, asyncio.create_task(check(part))))
            if len(under_way) == at_once:
                yield await first()
        while under_way:
            yield await first()
    finally:
        await ended(task for _, task in under_way)


def _died(died: CheckersDied) -> str:
    return (
        f"The processes that checked lines {died} were killed one after the other, so nothing was queued. Make the "
        "batch again; if this happens again, one of these lines is too much for them, and the service's log tells more."
    )
