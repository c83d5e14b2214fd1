"""One host's life, from the row that wants it to the provider's word that it is gone.

Each step writes what it is about to do before it does it, and does only what is not done: whoever leads next goes on
from the row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

import asyncpg

from app.background import ended
from app.capacity.host_service import HostService
from app.capacity.making import Making
from app.capacity.record import GONE_ANSWERS, PAUSE_SECONDS, Blame, Failed, Gone, HostRecord, Means
from app.capacity.serving import AddressTaken, Serving
from app.errors import DatabaseUnavailable
from app.queue.hosts import HostStore, LeadersHosts
from app.telemetry import logger
from nvidia_triton.providers.base import Offer, ProviderError

log = logger("capacity")

# Answers of the provider in which a host is there that was told to end, before it is told again.
STILL_THERE_ANSWERS = 3


class Walk:
    """`row` is the host as last read; `offer` is there where this process has just reserved it."""

    def __init__(
        self,
        row: Mapping[str, Any],
        means: Means,
        store: HostStore,
        writes: LeadersHosts,
        serving: Serving,
        offer: Offer | None = None,
    ) -> None:
        self._host = HostRecord(row, means, store, writes)
        self._service = HostService(self._host, serving)
        self._making = Making(self._host, self._service, offer)
        self._order: tuple[str, str] | None = None
        self._ordered = asyncio.Event()

    @property
    def id(self) -> UUID:
        return self._host.id

    @property
    def row(self) -> Mapping[str, Any]:
        return self._host.row

    @property
    def in_doubt(self) -> bool:
        return self.row["state"] == "creating" and self.row["provider_id"] is None and self._making.offer is None

    @property
    def refusal(self) -> str:
        """Why the provider made nothing, where that was not for the offer."""
        return self._making.refusal

    def order(self, state: str, reason: str) -> None:
        """Has it go on with `draining`, `destroying` or, drained again, `ready`."""
        if self.row["state"] == "destroying" or self.row["state"] == state:
            return
        self._order = (state, reason)
        self._ordered.set()

    async def run(self) -> None:
        """Returns when the host has ended; cancelled, it leaves the host as it is."""
        # What a step came to is kept until it is written down, however long Postgres is away.
        came_to: Gone | Failed | None = None
        async with self._service:
            while self.row["ended_at"] is None:
                try:
                    if came_to is None:
                        await self._step()
                    else:
                        await self._conclude(came_to)
                        came_to = None
                except (DatabaseUnavailable, AddressTaken, asyncpg.UniqueViolationError) as error:
                    log.warning("a host's step is repeated", host=self.row["label"], reason=str(error))
                    await asyncio.sleep(PAUSE_SECONDS)
                except (Gone, Failed) as outcome:
                    came_to = outcome

    async def _step(self) -> None:
        """The work of its state, until it is done or an order comes."""
        state: str = self.row["state"]
        steps: Mapping[str, Callable[[], Awaitable[None]]] = {
            "wanted": self._making.create,
            "creating": self._making.find,
            "booting": self._making.boot,
            "deploying": self._making.deploy,
            "loading": self._making.deploy,
            "ready": self._service.serve,
            "draining": self._service.drain,
            "destroying": self._destroy,
        }
        # What may have been asked for is found before anything else, and the end is not interrupted.
        if state == "destroying" or self.in_doubt:
            await steps[state]()
            return
        step = asyncio.ensure_future(steps[state]())
        ordered = asyncio.create_task(self._ordered.wait())
        try:
            await asyncio.wait({step, ordered}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await ended((ordered, step))
        if not step.cancelled():
            step.result()
        await self._obey()

    async def _obey(self) -> None:
        order, self._order = self._order, None
        self._ordered.clear()
        if order is None or self.row["ended_at"] is not None or self.row["state"] == "destroying":
            return
        state, reason = order
        if state == "ready":
            if self.row["state"] == "draining":
                await self._service.undrain()
                await self._host.move("ready", reason)
        elif state == "draining" and self.row["state"] == "ready":
            await self._host.move("draining", reason)
        else:
            await self._host.move("destroying", reason)

    async def _end(self, reason: str, *, charged: bool = True) -> None:
        await self._service.end()
        keeps_storage = self._host.means.provider.keeps_storage
        await self._host.writes.end(self.id, reason, charged=charged, keeps_storage=keeps_storage)
        log.info("host has ended", host=self.row["label"], reason=reason)
        self._host.row["ended_at"] = True

    async def _conclude(self, outcome: Gone | Failed) -> None:
        if isinstance(outcome, Failed):
            await self._fail(outcome)
        else:
            await self._end("The provider no longer has it.")

    async def _fail(self, failure: Failed) -> None:
        log.warning("host failed", host=self.row["label"], state=self.row["state"], reason=str(failure))
        if failure.taken:
            await self._host.writes.taken(self.id)
        if failure.blame is not Blame.NOBODY:
            await self._host.writes.fail(self.id, str(failure), of_machine=failure.blame is Blame.MACHINE)
        if self.row["provider_id"] is None:
            await self._end(str(failure), charged=failure.charged)
        else:
            await self._host.move("destroying", str(failure))

    async def _destroy(self) -> None:
        """Told to end until the provider is known not to have it."""
        await self._service.end()
        if self.row["provider_id"] is None:
            id_ = await self._making.found()
            await self._host.writes.known_as(self.id, id_)
            self._host.row["provider_id"] = id_
        while True:
            try:
                await self._host.means.provider.destroy(self.row["provider_id"])
            except ProviderError as error:
                log.error("a host cannot be ended yet and costs money", host=self.row["label"], reason=str(error))
                await self._host.say(f"It cannot be ended yet: {error}", noted=True)
                await asyncio.sleep(PAUSE_SECONDS)
                await self._host.means.listings.next()
                continue
            there = missing = 0
            while there < STILL_THERE_ANSWERS:
                if self._host.listed_in(await self._host.means.listings.next(hurry=True)):
                    there, missing = there + 1, 0
                else:
                    there, missing = 0, missing + 1
                    if missing == GONE_ANSWERS:
                        raise Gone
            log.error("a host was told to end, is still there and costs money", host=self.row["label"])
            await self._host.say("It was told to end and is still there: told again.", noted=True)
