"""From a row that wants a host to one with its models loaded."""

from __future__ import annotations

import asyncio

from app.background import ended
from app.capacity.host_service import HostService
from app.capacity.record import Blame, Failed, HostRecord, stopped
from app.telemetry import logger
from nvidia_triton.providers.base import DeployFailed, Doubtful, Offer, OfferGone, Progress, ProviderError, Refused

log = logger("capacity")

# Answers of the provider in which a host with the label is missing before it counts as never made.
NEVER_MADE_ANSWERS = 6


class Making:
    """`offer` is there where this process has just reserved it."""

    def __init__(self, host: HostRecord, service: HostService, offer: Offer | None) -> None:
        self._host = host
        self._service = service
        self.offer = offer
        # Why the provider made nothing, where that was not for the offer.
        self.refusal = ""

    async def create(self) -> None:
        """Asked for once: an answer that is lost leaves the label to look for."""
        offer, self.offer = self.offer, None
        if offer is None:
            raise Failed(
                "It was not asked for before the process that wanted it ended.", charged=False, blame=Blame.NOBODY
            )
        try:
            await self._host.means.check()
        except Refused as error:
            raise self._refused(error) from None
        await self._host.move("creating")
        try:
            id_ = await self._host.means.provider.create(offer, self._host.row["label"], self._host.means.definition)
        except Doubtful as error:
            log.warning("a create's answer is unclear", host=self._host.row["label"], reason=str(error))
            await self._host.say(f"The answer to the create was lost: {error}", noted=True)
            return
        except OfferGone as error:
            raise Failed(str(error), charged=False, blame=Blame.NOBODY) from None
        except ProviderError as error:
            raise self._refused(error) from None
        await self._host.move("booting", provider_id=id_)

    def _refused(self, error: ProviderError) -> Failed:
        self.refusal = str(error)
        return Failed(str(error), charged=False, blame=Blame.NOBODY)

    async def find(self) -> None:
        await self._host.move("booting", "It was found by its label.", provider_id=await self.found())

    async def found(self) -> str:
        """The id of a host whose create may have been answered; raises Failed where it was never made."""
        for _ in range(NEVER_MADE_ANSWERS):
            listing = await self._host.means.listings.next()
            if (found := listing.labelled(self._host.row["label"])) is not None:
                return found.id
        raise Failed("The answer to its create was lost, and no host has its label.", blame=Blame.POOL)

    async def boot(self) -> None:
        # What a leader before has heard is no progress.
        told = self._host.row["progress"]
        while True:
            rented = await self._host.seen()
            if rented.state == "running" and rented.address is not None:
                await self._host.move("deploying")
                return
            if rented.state in ("failed", "stopped"):
                raise stopped(rented)
            if rented.detail != told:
                told = rented.detail
                await self._host.say(told, noted=True)

    async def deploy(self) -> None:
        address = await self._host.running_at()
        said: asyncio.Queue[Progress] = asyncio.Queue()
        models = tuple(self._host.row["models"])
        deploying = asyncio.ensure_future(self._host.means.deploy(address, models, said.put_nowait))
        writing = asyncio.create_task(self._write_progress(said))
        watching = asyncio.create_task(self._service.until_gone())
        tasks = {deploying, writing, watching}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await ended(tasks)
        for task in (watching, writing):
            if not task.cancelled():
                task.result()
        try:
            if not deploying.cancelled():
                deploying.result()
        except DeployFailed as error:
            blame = Blame.MACHINE if error.of_model is None else Blame.POOL
            raise Failed(f"{error.step}: {error}", blame=blame) from None
        await self._service.begin(address)

    async def _write_progress(self, said: asyncio.Queue[Progress]) -> None:
        step = ""
        while True:
            told = await said.get()
            if told.step == "load model" and self._host.row["state"] == "deploying":
                await self._host.move("loading")
            percent = "" if told.percent is None else f" {told.percent:.0f} %"
            await self._host.say(f"{told.text}{percent}", noted=told.step != step)
            step = told.step
