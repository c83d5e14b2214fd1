"""Tells the other dispatchers and the API which models are set aside, and loads those again that are dead.

What one dispatcher knows to be dead is set aside by all, so that none spends attempts on it. One of them unloads and
loads it, at most so many times an hour; when that one dies, its claim runs out and another goes on with the step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from app.background import ended
from app.config import Settings
from app.engines.base import GONE_CODES, EngineError, NotLoaded
from app.errors import DatabaseUnavailable
from app.fleet.fleet import Fleet
from app.fleet.lanes import Lane
from app.fleet.quarantine import TRIAL_SHORTEST_SECONDS, trial
from app.queue.set_aside import RELOAD_LEASE_SECONDS, Key, SetAside, SetAsideStore, Step
from app.telemetry import logger
from app.telemetry.metrics import RELOADS

log = logger("recovery")

# What was shared holds for some time only; see `FRESH_SECONDS`.
LONGEST_ROUND_SECONDS = 5.0
ORDER_SECONDS = 10.0
# Requests that hang keep a model in UNLOADING, while the server would load it beside that.
UNLOAD_SECONDS = 10.0
# Weights may be downloaded on the way.
LOAD_SECONDS = 3600.0

UNLOADING = "It is being unloaded, to be loaded again."
LOADING = "It is being loaded again."
LOADING_BESIDE = (
    f"It was still being unloaded after {UNLOAD_SECONDS:g} s, and is loaded again all the same; should that fail, "
    "restart the server."
)
LOADED = "It was loaded again and does not answer yet."
NO_ORDERS = "A server of this kind loads and unloads no models by request."
NEVER = "It is not loaded again, for MODEL_RELOADS_PER_HOUR is 0: restart the server, or load the model by hand."

Result = TypeVar("Result")


class ClaimLost(Exception):
    """Another dispatcher goes on with the reload."""


class Recovery:
    """`dispatcher` names the one who claims."""

    def __init__(self, store: SetAsideStore, fleet: Fleet, dispatcher: str, settings: Settings) -> None:
        self._store = store
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._settings = settings
        self._shared: set[Key] = set()
        self._reloads: dict[Key, asyncio.Task[None]] = {}

    @property
    def _per_hour(self) -> int:
        return self._settings.model_reloads_per_hour

    async def learn(self) -> None:
        """Sets aside what others know to be dead, before the first request is sent."""
        with suppress(DatabaseUnavailable):
            self._adopt(await self._store.read(abandoned=True), {}, {})

    async def watch(self, every_seconds: float) -> None:
        """Runs until cancelled."""
        try:
            while True:
                with suppress(DatabaseUnavailable):
                    await self._round()
                # What is known is told at once: the one who knows may be killed next.
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(every_seconds, LONGEST_ROUND_SECONDS)):
                        await self._fleet.withdrawn.wait()
                self._fleet.withdrawn.clear()
        finally:
            await ended(self._reloads.values())
            self._reloads.clear()

    async def _round(self) -> None:
        lanes = {(lane.server.url, lane.model): lane for lane in self._fleet.lanes()}
        aside = {key: lane for key, lane in lanes.items() if lane.quarantine}
        if answering := {key for key in self._shared if key in lanes and key not in aside}:
            await self._store.clear(answering)
        self._shared &= aside.keys()
        rows = await self._store.read(abandoned=True)
        for key in self._shared - rows.keys():
            # It answers another dispatcher again.
            aside.pop(key).try_again.set()
        self._adopt(rows, lanes, aside)
        if aside:
            await self._store.share({key: (lane.quarantine, lane.dead) for key, lane in aside.items()})
        self._shared = set(aside)
        for key, lane in aside.items():
            self._look_after(key, lane, rows.get(key))

    def _adopt(self, rows: dict[Key, SetAside], lanes: dict[Key, Lane], aside: dict[Key, Lane]) -> None:
        servers = {server.url: server for server in self._fleet.servers}
        for key, row in rows.items():
            if row.dead and row.server in servers and key not in aside:
                # One that was unloaded by a dispatcher that has died is known by its row alone.
                lane = aside[key] = lanes.get(key) or servers[row.server].lane(row.model)
                self._fleet.set_aside(lane, row.reason, dead=True)

    def _look_after(self, key: Key, lane: Lane, row: SetAside | None) -> None:
        reload = self._reloads.get(key)
        if reload is not None and reload.done():
            if error := self._reloads.pop(key).exception():
                log.error("a defect ended a reload", server=key[0], model=key[1], error=repr(error))
            reload = None
        if reload is None and lane.dead and lane.server.up and (row is None or row.free):
            begun = row is not None and row.step is not None
            self._reloads[key] = asyncio.create_task(self._reload(key, lane, begun))

    async def _reload(self, key: Key, lane: Lane, begun: bool) -> None:
        with suppress(DatabaseUnavailable, ClaimLost):
            if not self._per_hour:
                await self._store.note(key, NEVER)
                return
            if not begun and not await _is_dead(lane):
                # Somebody else has seen to it.
                lane.try_again.set()
                return
            step = await self._store.claim(key, self._dispatcher, self._per_hour)
            if step is None:
                await self._say_when(key)
                return
            log.warning("dead model is loaded again", server=key[0], model=key[1], reason=lane.quarantine, step=step)
            outcome, note = "loaded", LOADED
            try:
                await self._carry_out(key, lane, step)
            except EngineError as error:
                outcome = "failed"
                note = f"It could not be loaded again: {error.message}"
                if isinstance(error, NotLoaded) and error.refused:
                    note = f"{error.message} Restart it, or load the model again by hand."
                log.error("model could not be loaded again", server=key[0], model=key[1], reason=error.message)
            RELOADS.labels(*key, outcome).inc()
            await self._store.finish(key, self._dispatcher, note)

    async def _carry_out(self, key: Key, lane: Lane, step: Step) -> None:
        orders = lane.server.engine.control()
        if orders is None:
            raise NotLoaded(NO_ORDERS, raw="", refused=True)
        async with orders as control:
            note = LOADING
            if step == "unload":
                unloading = control.unload(lane.model, ORDER_SECONDS, UNLOAD_SECONDS)
                if not await self._holding(key, "unload", UNLOADING, unloading):
                    note = LOADING_BESIDE
                    log.warning("model is not unloaded, it is loaded all the same", server=key[0], model=key[1])
            await self._holding(key, "load", note, control.load(lane.model, LOAD_SECONDS))
        log.info("model was loaded again", server=key[0], model=key[1])
        lane.try_again.set()

    async def _holding(self, key: Key, step: Step, note: str, work: Awaitable[Result]) -> Result:
        """What `work` gives, with the claim renewed meanwhile.

        Raises:
            ClaimLost: it ran out, and another dispatcher has it.
        """
        task = asyncio.ensure_future(work)
        try:
            while True:
                with suppress(DatabaseUnavailable):
                    if not await self._store.keep(key, self._dispatcher, step, note):
                        raise ClaimLost
                done, _ = await asyncio.wait({task}, timeout=RELOAD_LEASE_SECONDS / 4)
                if done:
                    return task.result()
        finally:
            await ended([task])

    async def _say_when(self, key: Key) -> None:
        """Where the hour's reloads are spent."""
        if moment := await self._store.next_reload(key):
            await self._store.note(
                key,
                f"It was loaded again {self._per_hour} times within an hour, as MODEL_RELOADS_PER_HOUR allows; "
                f"the next time is {moment:%H:%M:%S} UTC. The server's log says why it dies.",
            )


async def _is_dead(lane: Lane) -> bool:
    """Asked anew, for the server may have been restarted, or the model loaded by hand.

    Silence is no sign of life in one that was known to be dead: Triton takes a second over each request that waits for
    a dead process, so the trial may have its turn late.
    """
    failure = await trial(lane, TRIAL_SHORTEST_SECONDS)
    if failure is None or failure.code in GONE_CODES:
        return False
    state = lane.server.models.get(lane.model)
    # vLLM's health check unloads a model whose engine is dead; one that is on its way to be ready is left to that.
    return failure.code != "model_unavailable" or state is None or state.state == "unavailable"
