"""Vast.ai as a provider: four calls, how each fails, and what is known of a host afterwards."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from nvidia_triton.providers.base import Doubtful, NoOffer, Offer, OfferGone, Refused, Rented, Unavailable
from nvidia_triton.providers.registry import open_definition, open_provider
from nvidia_triton.providers.vast import VastProvider
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.settings import ROOT, VastSettings, load_settings
from tests.service import eventually
from tests.vast.fake import FakeVast

FILE = ROOT / "nvidia_triton" / "vastai_instance_definition.yaml"
LABEL = "triton-tickets-pool-1a2b"
FOR_EVER = 10_000


@pytest.fixture
def settings(vast_env: dict[str, str], tmp_path: Path) -> VastSettings:
    return dataclasses.replace(load_settings(vast_env, tmp_path), poll_seconds=0.02)


@pytest.fixture
def definition() -> InstanceDefinition:
    return open_definition(FILE)


@pytest.fixture
async def provider(vast: FakeVast, settings: VastSettings) -> AsyncIterator[VastProvider]:
    opened = open_provider("vast", {}, settings)
    assert isinstance(opened, VastProvider)
    yield opened
    await opened.close()


async def cheapest(provider: VastProvider, definition: InstanceDefinition) -> Offer:
    return (await provider.offers(definition.offer_query()))[0]


async def the_one(provider: VastProvider) -> Rented:
    (host,) = await provider.list(LABEL)
    return host


async def becomes(provider: VastProvider, state: str) -> Rented:
    async def is_in() -> Rented | None:
        host = await the_one(provider)
        return host if host.state == state else None

    return cast("Rented", await eventually(is_in, f"the host is {state}"))


async def test_offers_say_what_a_choice_needs(provider: VastProvider, definition: InstanceDefinition) -> None:
    offers = await provider.offers(definition.offer_query())
    assert [offer.id for offer in offers] == ["9101001", "9101002", "9101003", "9101004"]
    assert offers[0] == Offer(
        id="9101001",
        machine="1001",
        gpu="RTX 3090",
        gpus=1,
        vram_gb=24.0,
        price=pytest.approx(0.22 + 80 * 0.15 / 720, abs=1e-4),
        storage_price=pytest.approx(80 * 0.15 / 720),
        driver="580.95.05",
        cuda="13.0",
        region="Poland, PL",
    )


async def test_no_offer_says_which_condition_removes_them(
    vast: FakeVast, provider: VastProvider, definition: InstanceDefinition
) -> None:
    with pytest.raises(NoOffer) as none:
        await provider.offers(definition.offer_query(max_price=0.1))
    removed = {each.condition: each.count for each in none.value.removed}
    assert (removed["max_price"], removed["query.gpu_ram"], removed["image.driver"]) == (12, 1, 1)
    vast.offers.clear()
    with pytest.raises(NoOffer, match="no offer at all") as empty:
        await provider.offers(definition.offer_query())
    assert empty.value.removed == ()


async def test_a_driver_that_is_too_old_is_no_offer(
    vast: FakeVast, provider: VastProvider, definition: InstanceDefinition
) -> None:
    """CUDA 13.0 alone does not say it: 580.82 has it, and the image asks for 580.95."""
    vast.offers[0]["driver_version"] = "580.82.07"
    assert (await cheapest(provider, definition)).id == "9101002"


async def test_a_host_from_nothing_to_gone(
    vast: FakeVast, provider: VastProvider, definition: InstanceDefinition, settings: VastSettings
) -> None:
    offer = await cheapest(provider, definition)
    ident = await provider.create(offer, LABEL, definition)
    assert (await the_one(provider)).label == LABEL
    host = await becomes(provider, "running")
    assert (host.id, host.machine, host.gpu) == (ident, offer.machine, offer.gpu)
    assert host.price == pytest.approx(offer.price, abs=1e-3)
    assert host.address is not None
    assert host.address.routes[0] == ("127.0.0.1", vast.host(int(ident)).port)
    # Whoever lists brings the key there.
    assert vast.ssh(int(ident), settings.require_ssh_key(), "true").returncode == 0
    assert await provider.list("triton-tickets-other") == []
    await provider.destroy(ident)
    assert await provider.list("triton-tickets-", [ident]) == []
    await provider.destroy(ident)


async def test_what_a_create_made_is_known_or_in_doubt(
    vast: FakeVast, provider: VastProvider, definition: InstanceDefinition
) -> None:
    offer = await cheapest(provider, definition)
    vast.faults.create_refused = 1
    with pytest.raises(Refused, match="lacks credit"):
        await provider.create(offer, LABEL, definition)
    vast.faults.rate_limited = 1
    with pytest.raises(Unavailable, match="fewer calls"):
        await provider.create(offer, LABEL, definition)
    assert vast.instances() == []
    vast.faults.create_unavailable = 1
    with pytest.raises(Doubtful):
        await provider.create(offer, LABEL, definition)
    assert (await the_one(provider)).label == LABEL
    vast.faults.create_cut = 1
    with pytest.raises(Doubtful):
        await provider.create(offer, f"{LABEL}-2", definition)
    assert len(await provider.list(f"{LABEL}-2")) == 1
    assert len(vast.instances()) == 2, "a create is sent once"
    with pytest.raises(OfferGone):
        await provider.create(offer, LABEL, definition)


async def test_a_create_that_is_cancelled_is_found_by_its_label(
    vast: FakeVast, provider: VastProvider, definition: InstanceDefinition
) -> None:
    vast.faults.create_seconds = 0.5
    task = asyncio.create_task(provider.create(await cheapest(provider, definition), LABEL, definition))

    async def asked() -> bool:
        return bool(vast.calls("PUT", "/asks/"))

    await eventually(asked, "the host is asked for")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await the_one(provider)).label == LABEL


async def test_nothing_is_believed_gone_while_vast_is_away(
    vast: FakeVast, provider: VastProvider, definition: InstanceDefinition
) -> None:
    offer = await cheapest(provider, definition)
    ident = await provider.create(offer, LABEL, definition)
    vast.faults.away = True
    began = time.monotonic()
    for call in (provider.list(LABEL), provider.destroy(ident), provider.offers(definition.offer_query())):
        with pytest.raises(Unavailable):
            await call
    with pytest.raises(Doubtful):
        await provider.create(offer, LABEL, definition)
    assert time.monotonic() - began < 20
    vast.faults.away = False
    assert (await the_one(provider)).id == ident
    vast.faults.unlisted = 1
    assert [each.id for each in await provider.list(LABEL, [ident])] == [ident]


async def test_a_host_that_outlives_its_destruction_is_listed(
    vast: FakeVast, provider: VastProvider, definition: InstanceDefinition
) -> None:
    ident = await provider.create(await cheapest(provider, definition), LABEL, definition)
    vast.faults.destroy_ignored = FOR_EVER
    await provider.destroy(ident)
    assert (await the_one(provider)).id == ident
    vast.faults.destroy_ignored, vast.faults.destroy_refused = 0, 1
    with pytest.raises(Refused, match="cannot be destroyed right now"):
        await provider.destroy(ident)


@pytest.mark.parametrize(("end", "state"), [("exited", "failed"), ("offline", "failed"), ("loading", "starting")])
async def test_hosts_that_never_boot(
    end: str, state: str, vast: FakeVast, provider: VastProvider, definition: InstanceDefinition
) -> None:
    vast.faults.end_state = end
    ident = await provider.create(await cheapest(provider, definition), LABEL, definition)
    vast.wait_status(int(ident), end)
    host = await the_one(provider)
    assert host.state == state
    assert host.detail.startswith(end)
    assert host.address is None


async def test_an_interruptible_host_is_rented_for_the_bid_and_seen_when_it_is_taken(
    vast: FakeVast, provider: VastProvider
) -> None:
    definition = open_definition(FILE, bid=0.2)
    offer = await cheapest(provider, definition)
    storage = 80 * 0.15 / 720
    assert (offer.id, offer.interruptible, offer.price) == ("9101001", True, pytest.approx(0.2 + storage))
    assert await provider.offers(definition.offer_query()) != []
    with pytest.raises(NoOffer) as none:
        await provider.offers(open_definition(FILE, bid=0.01).offer_query())
    assert {each.condition: each.count for each in none.value.removed}["bid"] == len(vast.offers)
    ident = await provider.create(offer, LABEL, definition)
    assert vast.calls("PUT", "/asks/")[0].body["price"] == 0.2
    host = await becomes(provider, "running")
    assert (host.price, host.interrupted) == (pytest.approx(0.2 + storage, abs=1e-3), False)
    vast.interrupt(int(ident))
    host = await the_one(provider)
    assert (host.state, host.interrupted, host.price) == ("stopped", True, pytest.approx(storage, abs=1e-3))


async def test_the_newest_image_that_the_host_carries(
    vast: FakeVast, provider: VastProvider, definition: InstanceDefinition
) -> None:
    auto = open_definition(FILE, image={"tag": "auto"})
    by_id = {offer.id: offer for offer in await provider.offers(auto.offer_query())}
    for ident, tag in (("9101001", "25.10"), ("9101003", "26.04"), ("9101004", "26.07")):
        await provider.create(by_id[ident], LABEL, auto)
        assert vast.calls("PUT", "/asks/")[-1].body["image"].endswith(f":{tag}-vllm-python-py3")
