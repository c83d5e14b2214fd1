"""Instances of AWS that are started and stopped, on moto's server."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from nvidia_triton.providers.base import Doubtful, OfferGone, Provider, Refused, Unavailable
from nvidia_triton.providers.ec2 import Ec2Provider
from nvidia_triton.providers.registry import open_definition, open_provider
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.settings import ROOT, load_settings
from tests.test_servers_come_and_go import forwarding

REGION = "eu-central-1"
LABEL = "triton-tickets-1a2b"
FILE = ROOT / "nvidia_triton" / "vastai_instance_definition.yaml"


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def environ(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{aws}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def ec2(environ: None) -> Any:
    return boto3.client("ec2", region_name=REGION)


@pytest.fixture
def stopped(ec2: Any) -> list[str]:
    """Two instances that are stopped."""
    image = ec2.describe_images()["Images"][0]["ImageId"]
    made = ec2.run_instances(ImageId=image, MinCount=2, MaxCount=2, InstanceType="g5.xlarge")["Instances"]
    ids = [each["InstanceId"] for each in made]
    ec2.stop_instances(InstanceIds=ids)
    return ids


@pytest.fixture
def definition() -> InstanceDefinition:
    return open_definition(FILE)


@pytest.fixture
async def provider(stopped: list[str]) -> AsyncIterator[Provider]:
    opened = provider_of(stopped)
    yield opened
    await opened.close()


def provider_of(ids: list[str]) -> Provider:
    named = [
        {"id": id_, "price": price, "storage_price": 0.02, "gpu": "A10G", "vram_gb": 24}
        for id_, price in zip(ids, (1.2, 1.0), strict=True)
    ]
    return open_provider("ec2", {"region": REGION, "instances": named}, load_settings({}, ROOT))


async def test_an_instance_is_started_listed_and_stopped(
    provider: Provider, stopped: list[str], definition: InstanceDefinition, ec2: Any
) -> None:
    query = replace(definition.offer_query(), gpu_names=(), max_price=1.5)
    offers = await provider.offers(query)
    assert [(each.id, each.price, each.storage_price) for each in offers] == [
        (stopped[1], 1.0, 0.02),
        (stopped[0], 1.2, 0.02),
    ]
    assert await provider.list("triton-tickets-") == []
    id_ = await provider.create(offers[0], LABEL, definition)
    (host,) = await provider.list("triton-tickets-")
    assert (host.id, host.label, host.state, host.price) == (id_, LABEL, "running", 1.0)
    assert host.address is not None
    assert host.address.routes[0][1] == 22
    # Somebody else's, and one that was in the settings when it was started.
    assert await provider.list("others-") == []
    other = provider_of([stopped[0], "i-0123456789abcdef0"])
    assert [each.id for each in await other.list("others-", known=[id_])] == [id_]
    assert [each.id for each in await provider.offers(query)] == [stopped[0]]
    with pytest.raises(OfferGone, match="running"):
        await provider.create(offers[0], LABEL, definition)
    for _ in range(2):
        await provider.destroy(id_)
        assert await provider.list("triton-tickets-", known=[id_]) == []
    state = ec2.describe_instances(InstanceIds=[id_])["Reservations"][0]["Instances"][0]["State"]["Name"]
    assert state == "stopped"
    await provider.destroy("i-0123456789abcdef0")


async def test_a_start_whose_answer_is_lost_is_in_doubt_and_an_api_that_is_away_is_not(
    aws: str, stopped: list[str], definition: InstanceDefinition, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with forwarding(aws) as tunnel:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{tunnel.url}")
        provider = provider_of(stopped)
        assert isinstance(provider, Ec2Provider)
        offer = (await provider.offers(replace(definition.offer_query(), gpu_names=(), max_price=1.5)))[0]
        loop = asyncio.get_running_loop()

        def hang_up(**_: Any) -> None:
            loop.call_soon_threadsafe(tunnel.turn_away)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()

        provider._client.meta.events.register("before-send.ec2.StartInstances", hang_up)
        with pytest.raises(Doubtful, match="lost"):
            await provider.create(offer, LABEL, definition)
        await tunnel.cut()
        with pytest.raises(Unavailable):
            await provider.list("triton-tickets-")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "region"),
        ({"region": REGION, "instances": []}, "instances"),
        ({"region": REGION, "instances": [{"id": "web-1", "price": 1}]}, "instances.0.id"),
        ({"region": REGION, "instances": [{"id": "i-0123456789abcdef0"}]}, "instances.0.price"),
        ({"region": REGION, "instances": [{"id": "i-0123456789abcdef0", "price": 1}], "ami": "x"}, "ami"),
        ({"region": "not a region", "instances": [{"id": "i-0123456789abcdef0", "price": 1}]}, "region"),
    ],
)
def test_settings_that_cannot_work_are_named(environ: None, options: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused, match=named):
        open_provider("ec2", options, load_settings({}, ROOT))


def test_boto3_is_loaded_by_those_alone_who_have_such_a_pool() -> None:
    code = "import sys, app.capacity.__main__, nvidia_triton.providers.registry; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), check=False).returncode == 0
