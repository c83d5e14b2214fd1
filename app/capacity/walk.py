"""One host's life, from the row that wants it to the provider's word that it is gone.

Each step writes what it is about to do before it does it, and does only what is not done: whoever leads next goes on
from the row.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from app.capacity.listings import Listing, Listings
from app.capacity.serving import AddressTaken, Serving
from app.errors import DatabaseUnavailable
from app.queue.hosts import HostStore, LeadersHosts
from app.telemetry import logger
from nvidia_triton.providers.base import (
    Address,
    DeployFailed,
    Doubtful,
    Offer,
    OfferGone,
    Progress,
    Provider,
    ProviderError,
    Rented,
    Tunnel,
)

log = logger("capacity")

# Answers of the provider in which a host is missing before it counts as gone, or as never made.
GONE_ANSWERS = 2
NEVER_MADE_ANSWERS = 6
# As many in which one is there that was told to end, before it is told again.
STILL_THERE_ANSWERS = 3
# So long Triton may not answer behind its tunnel.
UNWELL_SECONDS = 60.0
LOOK_SECONDS = 2.0
PAUSE_SECONDS = 1.0
SAY_SECONDS = 2.0
TUNNEL_TRIES = 3


@dataclass(frozen=True)
class Means:
    """What hosts of one pool are made with. `deploy` and `tunnel` are given the host's address."""

    provider: Provider
    listings: Listings
    definition: Any
    slots: int
    deploy: Callable[[Address, tuple[str, ...], Callable[[Progress], None]], Awaitable[None]]
    tunnel: Callable[[Address], Tunnel]
    # Where API and dispatchers reach this process's tunnels.
    advertised: str


class Failed(Exception):
    """The host is of no use any more, for this reason. `charged` is False where it never existed."""

    def __init__(self, reason: str, *, charged: bool = True, blamed: bool = True) -> None:
        super().__init__(reason)
        self.charged = charged
        # Whether its machine is to be avoided.
        self.blamed = blamed


class Gone(Exception):
    """The provider no longer has it."""


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
        self.row = dict(row)
        self._means = means
        self._store = store
        self._writes = writes
        self._serving = serving
        self._offer = offer
        self._order: tuple[str, str] | None = None
        self._ordered = asyncio.Event()
        self._open = AsyncExitStack()
        self._tunnel: Tunnel | None = None
        self._said = 0.0
        # Why the provider made nothing, where that was not for the offer.
        self.refusal = ""

    @property
    def id(self) -> UUID:
        id_: UUID = self.row["id"]
        return id_

    @property
    def in_doubt(self) -> bool:
        return self.row["state"] == "creating" and self.row["provider_id"] is None and self._offer is None

    def order(self, state: str, reason: str) -> None:
        """Has it go on with `draining`, `destroying` or, drained again, `ready`."""
        if self.row["state"] == "destroying" or self.row["state"] == state:
            return
        self._order = (state, reason)
        self._ordered.set()

    async def run(self) -> None:
        """Returns when the host has ended; cancelled, it leaves the host as it is."""
        async with self._open:
            while self.row["ended_at"] is None:
                try:
                    await self._step()
                except (DatabaseUnavailable, AddressTaken, asyncpg.UniqueViolationError) as error:
                    log.warning("a host's step is repeated", host=self.row["label"], reason=str(error))
                    await asyncio.sleep(PAUSE_SECONDS)
                except Gone:
                    await self._end("The provider no longer has it.")
                except Failed as failure:
                    await self._fail(failure)

    async def _step(self) -> None:
        """The work of its state, until it is done or an order comes."""
        state: str = self.row["state"]
        steps: Mapping[str, Callable[[], Awaitable[None]]] = {
            "wanted": self._create,
            "creating": self._find,
            "booting": self._boot,
            "deploying": self._deploy,
            "loading": self._deploy,
            "ready": self._serve,
            "draining": self._drain,
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
            ordered.cancel()
            step.cancel()
            await asyncio.wait({step})
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
                await self._serving.undrain(self.row["server_id"])
                await self._move("ready", reason)
        elif state == "draining" and self.row["state"] == "ready":
            await self._move("draining", reason)
        else:
            await self._move("destroying", reason)

    async def _move(self, state: str, reason: str = "", **fields: Any) -> None:
        await self._writes.move(self.id, state, reason, **fields)
        log.info("host", host=self.row["label"], state=state, reason=reason)
        self.row |= {"state": state, **fields}

    async def _say(self, text: str, *, noted: bool = False) -> None:
        """What does not change is not written down again and again."""
        if not noted and time.monotonic() - self._said < SAY_SECONDS:
            return
        self._said = time.monotonic()
        with suppress(DatabaseUnavailable):
            await self._writes.progress(self.id, text, noted=noted)

    async def _end(self, reason: str, *, charged: bool = True) -> None:
        await self._close_tunnel()
        await self._serving.remove(self.row["server_id"])
        await self._writes.end(self.id, reason, charged=charged)
        log.info("host has ended", host=self.row["label"], reason=reason)
        self.row["ended_at"] = True

    async def _fail(self, failure: Failed) -> None:
        log.warning("host failed", host=self.row["label"], state=self.row["state"], reason=str(failure))
        if failure.blamed:
            await self._writes.fail(self.id, str(failure))
        if self.row["provider_id"] is None:
            await self._end(str(failure), charged=failure.charged)
        else:
            await self._move("destroying", str(failure))

    async def _create(self) -> None:
        """Asked for once: an answer that is lost leaves the label to look for."""
        offer, self._offer = self._offer, None
        if offer is None:
            raise Failed("It was not asked for before the process that wanted it ended.", charged=False, blamed=False)
        await self._move("creating")
        try:
            id_ = await self._means.provider.create(offer, self.row["label"], self._means.definition)
        except Doubtful as error:
            log.warning("a create's answer is unclear", host=self.row["label"], reason=str(error))
            await self._say(f"The answer to the create was lost: {error}", noted=True)
            return
        except OfferGone as error:
            raise Failed(str(error), charged=False, blamed=False) from None
        except ProviderError as error:
            self.refusal = str(error)
            raise Failed(str(error), charged=False, blamed=False) from None
        await self._move("booting", provider_id=id_)

    async def _find(self) -> None:
        await self._move("booting", "It was found by its label.", provider_id=await self._found())

    async def _found(self) -> str:
        """The id of a host whose create may have been answered; raises Failed where it was never made."""
        for _ in range(NEVER_MADE_ANSWERS):
            listing = await self._means.listings.next()
            if (found := listing.labelled(self.row["label"])) is not None:
                return found.id
        raise Failed("The answer to its create was lost, and no host has its label.", blamed=False)

    async def _boot(self) -> None:
        told = ""
        while True:
            rented = await self._seen()
            if rented.state == "running" and rented.address is not None:
                await self._move("deploying")
                return
            if rented.state == "failed":
                raise Failed(f"It does not start: {rented.detail}")
            if rented.state == "stopped":
                raise Failed(f"It was stopped: {rented.detail}", blamed=not rented.interrupted)
            if rented.detail != told:
                told = rented.detail
                await self._say(told, noted=True)

    async def _deploy(self) -> None:
        address = (await self._seen(latest=True)).address
        if address is None:
            raise Failed("It runs and has no address.")
        said: asyncio.Queue[Progress] = asyncio.Queue()
        models = tuple(self.row["models"])
        deploying = asyncio.ensure_future(self._means.deploy(address, models, said.put_nowait))
        writing = asyncio.create_task(self._write_progress(said))
        watching = asyncio.create_task(self._until_gone())
        tasks = {deploying, writing, watching}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in (watching, writing):
            if not task.cancelled():
                task.result()
        try:
            if not deploying.cancelled():
                deploying.result()
        except DeployFailed as error:
            raise Failed(f"{error.step}: {error}", blamed=error.of_model is None) from None
        await self._open_tunnel(address)
        await self._take_into_service()

    async def _write_progress(self, said: asyncio.Queue[Progress]) -> None:
        step = ""
        while True:
            told = await said.get()
            if told.step == "load model" and self.row["state"] == "deploying":
                await self._move("loading")
            percent = "" if told.percent is None else f" {told.percent:.0f} %"
            await self._say(f"{told.text}{percent}", noted=told.step != step)
            step = told.step

    async def _take_into_service(self) -> None:
        assert self._tunnel is not None
        address = f"{self._means.advertised}:{self._tunnel.grpc_port}"
        server_id = await self._serving.at(self.row, address, self._means.slots)
        if self.row["state"] == "draining":
            await self._serving.drain(server_id)
            await self._writes.serve_at(self.id, server_id, address)
        elif self.row["state"] == "ready":
            await self._writes.serve_at(self.id, server_id, address)
        else:
            await self._move("ready", server_id=server_id, address=address)
        self.row |= {"server_id": server_id, "address": address}

    async def _serve(self) -> None:
        if self._tunnel is None:
            await self._open_tunnel((await self._seen(latest=True)).address)
            await self._take_into_service()
        await self._until_gone()

    async def _until_gone(self) -> None:
        """Raises Gone or Failed."""
        well = time.monotonic()
        seen = self._means.listings.latest
        missing = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            latest = self._means.listings.latest
            if latest is not None and latest is not seen:
                seen = latest
                missing = 0 if self._in(latest) else missing + 1
                if missing >= GONE_ANSWERS:
                    raise Failed("The provider no longer has it, and nobody asked for its end.")
                if missing == 0:
                    self._require_running(latest)
            if self._tunnel is None or await self._tunnel.healthy():
                well = time.monotonic()
            elif time.monotonic() - well > UNWELL_SECONDS:
                problem = self._tunnel.problem or "the tunnel stands, and Triton behind it is silent"
                raise Failed(f"It has not answered for {UNWELL_SECONDS:.0f} s: {problem}")

    def _require_running(self, listing: Listing) -> None:
        rented = listing.hosts[self.row["provider_id"]]
        if rented.state != "running":
            raise Failed(f"It is {rented.state}: {rented.detail}", blamed=not rented.interrupted)
        if rented.address is not None and self._tunnel is not None:
            self._tunnel.address = rented.address

    async def _drain(self) -> None:
        """Until no live claim names it."""
        if self.row["server_id"] is not None:
            await self._serving.drain(self.row["server_id"])
            if self._tunnel is None:
                # Those that run there are cut off already; what is left of their claims is waited for.
                with suppress(DeployFailed, Failed):
                    await self._open_tunnel((await self._seen(latest=True)).address)
                    await self._take_into_service()
            # A dispatcher that has not heard of it yet may take one more ticket for it.
            await asyncio.sleep(PAUSE_SECONDS)
            while await self._store.claims(self.row["address"]):  # noqa: ASYNC110 - other processes end them
                await asyncio.sleep(PAUSE_SECONDS)
        await self._move("destroying", "It is drained.")

    async def _destroy(self) -> None:
        """Told to end until the provider is known not to have it."""
        await self._close_tunnel()
        await self._serving.remove(self.row["server_id"])
        if self.row["provider_id"] is None:
            id_ = await self._found()
            await self._writes.known_as(self.id, id_)
            self.row["provider_id"] = id_
        while True:
            try:
                await self._means.provider.destroy(self.row["provider_id"])
            except ProviderError as error:
                log.error("a host cannot be ended yet and costs money", host=self.row["label"], reason=str(error))
                await self._say(f"It cannot be ended yet: {error}", noted=True)
                await asyncio.sleep(PAUSE_SECONDS)
                await self._means.listings.next()
                continue
            there = missing = 0
            while there < STILL_THERE_ANSWERS:
                if self._in(await self._means.listings.next(hurry=True)):
                    there, missing = there + 1, 0
                else:
                    there, missing = 0, missing + 1
                    if missing == GONE_ANSWERS:
                        raise Gone
            log.error("a host was told to end, is still there and costs money", host=self.row["label"])
            await self._say("It was told to end and is still there: told again.", noted=True)

    async def _seen(self, *, latest: bool = False) -> Rented:
        """The host in the provider's next answer, or in its latest; raises Failed where it is missing."""
        listing = self._means.listings.latest if latest else None
        for _ in range(GONE_ANSWERS):
            listing = listing or await self._means.listings.next()
            if self._in(listing):
                return listing.hosts[self.row["provider_id"]]
            listing = None
        raise Failed("The provider no longer has it, and nobody asked for its end.")

    def _in(self, listing: Listing) -> bool:
        return self.row["provider_id"] in listing.hosts

    async def _open_tunnel(self, address: Address | None) -> None:
        if address is None:
            raise Failed("It runs and has no address.")
        for attempt in range(1, TUNNEL_TRIES + 1):
            tunnel = self._means.tunnel(address)
            try:
                await tunnel.start()
            except DeployFailed as error:
                if attempt == TUNNEL_TRIES:
                    raise Failed(f"No tunnel to it stands: {error}") from None
                continue
            self._tunnel = tunnel
            self._open.push_async_callback(self._close_tunnel)
            return

    async def _close_tunnel(self) -> None:
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            await tunnel.stop()
