"""Finds models that are ready by their server's word but do not answer, and lets them back when they do.

When a backend process dies, its requests in flight hang and readiness stays 200. So a lane that does not move is tested
with the least that its engine can be asked. When that is refused, the lane is set aside and its runs are given up;
silence counts only where a run has timed out already, or where nothing at all came from the engine for as long as a
run may be silent: a busy engine is silent too. Answers that come whole are no sign of life until they are there, so one
of a busy lane's generations is streamed, see `Lane.needs_sign`. A lane set aside is tested until
it answers; where its process meanwhile takes no request from anybody, it hangs, and counts as dead.
The runs of a server that is down for good are given up as well. Loading a dead model again is
dispatch/recovery.py's work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from app.background import ended
from app.engines.base import DEAD_CODES, Disposition, EngineError
from app.fleet.fleet import Fleet
from app.fleet.lanes import Lane
from app.telemetry import logger

log = logger("quarantine")

# Triton takes a second to find out that a backend process is dead.
TRIAL_SHORTEST_SECONDS = 5.0
TRIAL_FIRST_SECONDS = 2.0
TRIAL_LONGEST_SECONDS = 30.0
# How long a model's process may take no request, while it is tested and is silent, before it counts as hung.
HUNG_SECONDS = 30.0
COUNT_SECONDS = 5.0
HANGS = "The model's process hangs: it has taken no request for {:.0f} s although the server says ready."
SILENT_CODES = frozenset({"idle_timeout", "run_timeout"})


class Quarantine:
    """`give_up` is called with each lane whose requests in flight will never end."""

    def __init__(
        self, fleet: Fleet, stall_seconds: float, idle_seconds: float, give_up: Callable[[Lane], None]
    ) -> None:
        self._fleet = fleet
        self._stall = stall_seconds
        self._idle = idle_seconds
        self._patience = max(stall_seconds, TRIAL_SHORTEST_SECONDS)
        self._give_up = give_up
        self._trials: dict[Lane, asyncio.Task[None]] = {}

    async def watch(self, every_seconds: float) -> None:
        """Runs until cancelled."""
        try:
            while True:
                self._look()
                await asyncio.sleep(every_seconds)
        finally:
            await ended(self._trials.values())
            self._trials.clear()

    def _look(self) -> None:
        for lane in self._fleet.lanes():
            if lane in self._trials:
                if not self._trials[lane].done():
                    continue
                if error := self._trials.pop(lane).exception():
                    log.error("a trial crashed", server=lane.server.url, model=lane.model, error=repr(error))
            stalled = lane.in_flight > 0 and time.monotonic() - lane.tried_at > self._stall
            if stalled and not lane.server.up:
                self._give_up(lane)
            elif lane.quarantine or ((stalled or lane.suspect) and lane.server.up):
                self._trials[lane] = asyncio.create_task(self._try(lane))

    async def _try(self, lane: Lane) -> None:
        pause = TRIAL_FIRST_SECONDS
        signs = lane.signs
        silence = Silence()
        while (failure := await trial(lane, self._patience)) is not None:
            if lane.signs != signs or not lane.server.up:
                # It moves after all; or the probes will tell when the server is back, and the next look goes on.
                break
            if failure.retry_after is not None:
                # It is overloaded, and alive.
                break
            if failure.code in SILENT_CODES and not (lane.suspect or lane.quarantine or self._too_long_silent(lane)):
                # Other dispatchers may keep every slot of the engine busy: a short silence convicts nobody.
                lane.tried_at = time.monotonic()
                return
            if failure.code in DEAD_CODES:
                self._fleet.set_aside(lane, failure.message, dead=True)
            elif failure.code in SILENT_CODES and not lane.dead:
                silent = await silence.lasts(lane)
                if silent >= HUNG_SECONDS:
                    log.error("model's process hangs", server=lane.server.url, model=lane.model, seconds=round(silent))
                    self._fleet.set_aside(lane, HANGS.format(silent), dead=True)
                elif not lane.quarantine:
                    self._fleet.set_aside(lane, f"No answer within {self._stall:g} s although the server says ready.")
            elif not lane.quarantine:
                self._fleet.set_aside(lane, failure.message)
            self._give_up(lane)
            lane.try_again.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await lane.try_again.wait()
                # Somebody knows that it may answer now.
                pause = TRIAL_FIRST_SECONDS
            pause = min(pause * 2, TRIAL_LONGEST_SECONDS)
        else:
            if lane.quarantine:
                self._fleet.take_back(lane)
        lane.suspect = False
        lane.begin()

    def _too_long_silent(self, lane: Lane) -> bool:
        timeouts = lane.server.entry.timeouts
        most = max(timeouts.first_token or 0.0, timeouts.between_tokens or self._idle)
        return lane.in_flight > 0 and time.monotonic() - lane.moved_at > most


class Silence:
    """How long a model's process has taken no request; known of a server only that takes orders."""

    def __init__(self) -> None:
        self._taken: int | None = None
        self._since = 0.0

    async def lasts(self, lane: Lane) -> float:
        """Seconds, 0 where the server does not tell."""
        taken = await _taken(lane)
        if taken is None or taken != self._taken:
            self._taken, self._since = taken, time.monotonic()
        return time.monotonic() - self._since


async def _taken(lane: Lane) -> int | None:
    try:
        orders = lane.server.engine.control()
        if orders is None:
            return None
        async with orders as control:
            return await control.taken(lane.model, COUNT_SECONDS)
    except EngineError:
        return None


async def trial(lane: Lane, patience: float) -> EngineError | None:
    """Why a small request was not answered within `patience` seconds; None if the model is alive."""
    try:
        await lane.server.engine.ping(lane.model, patience)
    except EngineError as error:
        # An engine that refuses the trial for what it asks is alive.
        return None if error.disposition is Disposition.FINAL else error
    return None
