"""The tasks that a process runs beside its requests: each has an owner, and a defect ends none of them for good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from app.telemetry import logger
from app.telemetry.metrics import TASK_RESTARTS

log = logger("background")

FIRST_PAUSE_SECONDS = 1.0
# Shorter than a lease: whoever renews leases must be back before they end.
LONGEST_PAUSE_SECONDS = 10.0
# One that ran for this long without a defect is well again.
WELL_SECONDS = 60.0

# Whoever is cancelled may take so long to leave things in order.
CANCEL_AGAIN_SECONDS = 5.0

# A long loop gives way after working for this long; where that took longer than the second time, others are at work.
SLICE_SECONDS = 0.002
UNUSED_SECONDS = 0.0002

Work = Callable[[], Awaitable[None]]


class Pace:
    """Keeps a long loop from holding up the process: `step` is awaited after each of its steps."""

    def __init__(self) -> None:
        self._resumed = time.monotonic()

    async def step(self) -> None:
        """Lets others go first from time to time, and gives them as much time as the loop where there are any."""
        began = time.monotonic()
        if began - self._resumed < SLICE_SECONDS:
            return
        # What has arrived meanwhile is seen in the first round of the event loop, and done before the second one ends.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._resumed = time.monotonic()
        if self._resumed - began > UNUSED_SECONDS:
            await asyncio.sleep(SLICE_SECONDS)
            self._resumed = time.monotonic()


async def restarted(name: str, work: Work, *, passed_on: tuple[type[Exception], ...] = ()) -> None:
    """Runs `work` until it returns; where a defect ends it, starts it again after a pause that doubles.

    What is `passed_on` is no defect: it is raised.

    Its other parts must not wait for ever for a part that is gone, nor must one defect end the whole process.
    """
    clock = asyncio.get_running_loop().time
    pause = FIRST_PAUSE_SECONDS
    while True:
        started = clock()
        try:
            await work()
        except passed_on:
            raise
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise
            if clock() - started >= WELL_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            TASK_RESTARTS.labels(name).inc()
            log.exception("a background task crashed and is restarted", task=name, seconds=pause)
        else:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def ended(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancels tasks until all of them are over; what they raised stays in them.

    Once is not always enough: libraries lose a cancel that comes just as what they waited for is there.
    """
    each = set(tasks)
    left = {task for task in each if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_SECONDS)
    for task in each:
        if not task.cancelled():
            # Seen by whoever wants it, and no warning where nobody does.
            task.exception()


class Background:
    """Owns tasks that run until the block is left: then they are cancelled and awaited."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, work: Work) -> asyncio.Task[None]:
        """Starts `work`, which is restarted whenever a defect ends it; `name` is in its log lines and its metric.

        The task ends when `work` returns.
        """
        # So that the first restart is an increase.
        TASK_RESTARTS.labels(name)
        task = asyncio.create_task(restarted(name, work), name=name)
        self._tasks.append(task)
        return task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await ended(self._tasks)
        for task in self._tasks:
            if not task.cancelled():
                task.result()
