"""Vast.ai as a provider: the library's client in a thread of its own, one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from nvidia_triton.providers import base
from nvidia_triton.vast import instances, offers, startup, vast
from nvidia_triton.vast.context import Instance
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.query import Query
from nvidia_triton.vast.rows import Row, number
from nvidia_triton.vast.settings import VastSettings, public_half
from nvidia_triton.vast.work import Cancelled, Work

T = TypeVar("T")


class VastProvider:
    """Calls are sent once and paced; whoever asks repeats them. A host gets the SSH key once Vast.ai takes it."""

    name = "vast"
    keeps_storage = False

    def __init__(self, settings: VastSettings) -> None:
        self._settings = settings
        self._work = Work()
        self._thread = ThreadPoolExecutor(1, "vast")
        self._opened: vast.VastClient | None = None
        # Of those in here, Vast.ai has taken the key.
        self._let_in: set[int] = set()

    async def offers(self, query: Query) -> Sequence[base.Offer]:
        try:
            rows = await self._call(lambda client: offers.search(client, query))
        except offers.NoOffer as none:
            removed = [base.Removed(each.key, each.text, count) for each, count in none.removed]
            raise base.NoOffer(str(none), removed) from None
        return [_offer(row, query) for row in rows]

    async def create(self, offer: base.Offer, label: str, definition: InstanceDefinition) -> str:
        image = definition.image.on(offer.cuda, offer.driver)
        bid = definition.bid if offer.interruptible else None

        def create(client: vast.VastClient) -> int:
            # Not rented without: nobody could get in.
            self._settings.require_ssh_key()
            return client.create(
                int(offer.id),
                image=image.name,
                disk=definition.disk,
                label=label,
                env=instances.environment(definition, self._settings),
                onstart=definition.onstart,
                bid=bid,
            )

        return str(await self._call(create))

    async def list(self, label_prefix: str, known: Collection[str] = ()) -> Sequence[base.Rented]:
        def look(client: vast.VastClient) -> Sequence[Instance]:
            every = client.instances()
            found = [each for each in every if each.label.startswith(label_prefix) or str(each.id) in known]
            for ident in sorted(set(known) - {str(each.id) for each in every}):
                instance = client.instance(int(ident)) if ident.isdecimal() else None
                if instance is not None:
                    found.append(instance)
            for each in found:
                self._let_us_in(client, each)
            return found

        return [rented(each) for each in await self._call(look)]

    async def destroy(self, ident: str) -> None:
        await self._call(lambda client: client.destroy(int(ident)))

    async def close(self) -> None:
        self._work.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, ask: Callable[[vast.VastClient], T]) -> T:
        def call() -> T:
            if self._opened is None:
                self._opened = vast.VastClient(self._settings, self._work, tries=1)
            return ask(self._opened)

        with _translated():
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _let_us_in(self, client: vast.VastClient, instance: Instance) -> None:
        if instance.id in self._let_in or instance.status in startup.DEAD or instance.stopped:
            return
        try:
            key = public_half(self._settings.require_ssh_key()).read_text().strip()
            client.attach_key(instance.id, key)
        except (TargetError, OSError):
            # While it is being made it may not take a key yet: the next look tries again, and this one goes on.
            return
        self._let_in.add(instance.id)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except offers.NoOffer:
        raise
    except vast.OfferGone as error:
        raise base.OfferGone(str(error)) from None
    except vast.Doubtful as error:
        raise base.Doubtful(str(error)) from None
    except vast.Unavailable as error:
        raise base.Unavailable(str(error)) from None
    except TargetError as error:
        raise base.Refused(str(error)) from None
    except Cancelled:
        raise base.Unavailable("The connection to Vast.ai has been closed.") from None


def _offer(row: Row, query: Query) -> base.Offer:
    storage = offers.storage_price(row, query.disk_gb)
    return base.Offer(
        id=str(row["id"]),
        machine=str(row.get("machine_id") or ""),
        gpu=str(row.get("gpu_name") or "?"),
        gpus=int(number(row, "num_gpus") or 1),
        vram_gb=number(row, "gpu_ram") / 1024,
        price=number(row, "dph_total") if query.bid is None else query.bid + storage,
        storage_price=storage,
        driver=str(row.get("driver_version") or ""),
        cuda=str(row.get("cuda_max_good") or ""),
        region=str(row.get("geolocation") or ""),
        interruptible=query.bid is not None,
    )


def rented(instance: Instance) -> base.Rented:
    state = _state(instance)
    routes = tuple((address.host, address.port) for address in instance.addresses)
    return base.Rented(
        id=str(instance.id),
        label=instance.label,
        state=state,
        detail=f"{instance.status or 'being made'}{f': {instance.status_msg}' if instance.status_msg else ''}",
        machine=instance.machine,
        price=instance.hourly,
        address=base.Address(instance.name, routes) if routes else None,
        gpu=instance.gpu_name,
        gpus=instance.num_gpus,
        interrupted=state == "stopped" and instance.interruptible,
        started_at=instance.start_date,
    )


def _state(instance: Instance) -> base.HostState:
    if instance.stopped:
        return "stopped"
    if instance.status in startup.DEAD:
        return "failed"
    return "running" if instance.status == "running" else "starting"
