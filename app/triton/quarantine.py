"""Finds models that are ready by their server's word but do not answer, and lets them back when they do.

A dead backend process or a frozen server says nothing: requests in flight hang, readiness stays 200. So a lane that
does not move is tested with a request of one token; when that fails too, the lane is set aside and its runs are given
up. A lane set aside is tested again and again until it answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from app.triton.client import Disposition, TritonError
from app.triton.fleet import Fleet, Lane

TRIAL_FIRST_SECONDS = 2.0
TRIAL_LONGEST_SECONDS = 30.0
TRIAL_PROMPT = "ping"


class Quarantine:
    """`give_up` is called with each lane whose requests in flight will never end."""

    def __init__(self, fleet: Fleet, stall_seconds: float, give_up: Callable[[Lane], None]) -> None:
        self._fleet = fleet
        self._stall = stall_seconds
        self._give_up = give_up
        self._trials: dict[Lane, asyncio.Task[None]] = {}

    async def watch(self, every_seconds: float) -> None:
        """Runs until cancelled."""
        try:
            while True:
                self._look()
                await asyncio.sleep(every_seconds)
        finally:
            for trial in self._trials.values():
                trial.cancel()
            await asyncio.gather(*self._trials.values(), return_exceptions=True)

    def _look(self) -> None:
        for lane in self._fleet.lanes():
            if lane in self._trials:
                if not self._trials[lane].done():
                    continue
                self._trials.pop(lane).result()
            stalled = lane.in_flight > 0 and time.monotonic() - lane.moved_at > self._stall
            if stalled and not lane.server.up:
                self._give_up(lane)
            elif lane.quarantine or ((stalled or lane.suspect) and lane.server.up):
                self._trials[lane] = asyncio.create_task(self._try(lane))

    async def _try(self, lane: Lane) -> None:
        pause = TRIAL_FIRST_SECONDS
        moved_at = lane.moved_at
        while not await self._answers(lane):
            if lane.moved_at != moved_at:
                # The trial lost out against work that moves: the engine is busy, not stuck.
                break
            if not lane.server.up:
                # The probes will tell when it is back; the next look goes on from there.
                return
            if not lane.quarantine:
                self._fleet.set_aside(lane, f"no answer within {self._stall:g} s although the server says ready")
            self._give_up(lane)
            await asyncio.sleep(pause)
            pause = min(pause * 2, TRIAL_LONGEST_SECONDS)
        lane.suspect = False
        lane.moved()
        if lane.quarantine:
            self._fleet.take_back(lane)

    async def _answers(self, lane: Lane) -> bool:
        try:
            async with aclosing(
                lane.server.client.generate(
                    lane.model,
                    TRIAL_PROMPT,
                    {"max_tokens": 1},
                    request_id="trial",
                    idle_timeout=self._stall,
                    run_timeout=self._stall,
                )
            ) as messages:
                async for _ in messages:
                    pass
        except TritonError as error:
            # An engine that refuses the trial for what it asks is alive.
            return error.disposition is Disposition.FINAL
        return True
