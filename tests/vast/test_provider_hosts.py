"""A host of any provider: deployed in steps that can be watched, repeated and ended, and reached through a tunnel."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from nvidia_triton.providers.base import STEPS, Address, DeployFailed, Progress
from nvidia_triton.providers.deploy import deploy
from nvidia_triton.providers.tunnel import Tunnel
from nvidia_triton.providers.vast import rented as seen
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.settings import VastSettings
from tests.service import eventually
from tests.vast.fake import FakeVast, Machine
from tests.vast.rented import Rented, rent


class Deployment:
    """A rented machine, and deployments to it."""

    def __init__(self, rented: Rented) -> None:
        self.rented = rented
        self.reported: list[Progress] = []

    @property
    def address(self) -> Address:
        address = seen(self.rented.again()).address
        assert address is not None
        return address

    @property
    def definition(self) -> InstanceDefinition:
        return self.rented.context.definition

    @property
    def settings(self) -> VastSettings:
        return self.rented.context.settings

    def tunnel(self) -> Tunnel:
        return Tunnel(self.address, self.definition, self.settings)

    async def __call__(self, *models: str) -> None:
        self.reported.clear()
        await deploy(self.address, self.definition, models, self.reported.append, settings=self.settings)

    def steps(self) -> Sequence[str]:
        return list(dict.fromkeys(event.step for event in self.reported))


@pytest.fixture
def deployment(vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> Deployment:
    return Deployment(rent(vast, vast_env, tmp_path / "checkout"))


def ssh_children() -> list[str]:
    names = [child.name() for child in psutil.Process().children(recursive=True) if child.is_running()]
    return [name for name in names if name in ("ssh", "rsync")]


async def test_from_the_first_login_to_a_model_behind_a_tunnel(deployment: Deployment) -> None:
    deployment.rented.add_model("one")
    await deployment("one")
    assert tuple(deployment.steps()) == STEPS
    assert any("one: ready" in event.text for event in deployment.reported)
    async with deployment.tunnel() as tunnel:
        assert tunnel.problem == ""
        assert await tunnel.healthy()
        # Repeated, it finds all done.
        await deployment("one")
        assert "rsync" not in deployment.steps()
        assert any("unchanged and ready" in event.text for event in deployment.reported)
        # The host goes elsewhere.
        deployment.rented.vast.move(deployment.rented.instance.id)
        tunnel.address = deployment.address
        await eventually(tunnel.healthy, "the tunnel stands again")
    assert not await tunnel.healthy()
    assert ssh_children() == []


async def test_a_model_that_does_not_load_is_told_from_a_host_that_fails(deployment: Deployment) -> None:
    deployment.rented.add_model("other")
    with pytest.raises(DeployFailed, match="missing: there is no such folder") as failed:
        await deployment("missing")
    assert (failed.value.step, failed.value.of_model) == ("preflight", "missing")
    assert deployment.reported == []
    (deployment.rented.add_model("late", like="echo") / "1" / "model.py").write_text("raise RuntimeError('no room')\n")
    with pytest.raises(DeployFailed, match=r"Not loaded on vast-\d+: late: .*no room") as failed:
        await deployment("late")
    assert (failed.value.step, failed.value.of_model) == ("load model", "late")


async def test_a_host_with_an_old_driver_fails_the_preflight(
    vast: FakeVast, vast_env: dict[str, str], tmp_path: Path
) -> None:
    vast.machine = Machine(driver="535.183.01")
    deployment = Deployment(rent(vast, vast_env, tmp_path / "checkout"))
    deployment.rented.add_model("one")
    with pytest.raises(DeployFailed, match=r"the driver is 535\.183\.01") as failed:
        await deployment("one")
    assert (failed.value.step, failed.value.of_model) == ("preflight", None)


async def test_cancelled_in_the_middle_it_leaves_no_program_behind(deployment: Deployment) -> None:
    deployment.rented.add_model("one")
    task = asyncio.create_task(deployment("one"))

    async def begun() -> bool:
        return "start triton" in deployment.steps()

    await eventually(begun, "Triton is started")
    ident = deployment.rented.instance.id
    deployment.rented.vast.freeze(ident)
    await asyncio.sleep(0.2)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 10
    assert ssh_children() == []
    deployment.rented.vast.thaw(ident)
    await deployment("one")
    assert any("one: ready" in event.text for event in deployment.reported)


async def test_a_tunnel_to_nobody_says_why(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvidia_triton.providers.tunnel.UP_SECONDS", 1.0)
    address = deployment.address
    deployment.rented.vast.refuse(deployment.rented.instance.id)
    with pytest.raises(DeployFailed, match="does not answer") as failed:
        await Tunnel(address, deployment.definition, deployment.settings).start()
    assert failed.value.step == "ssh"
    with pytest.raises(DeployFailed, match="no address yet"):
        await Tunnel(dataclasses.replace(address, routes=()), deployment.definition, deployment.settings).start()
    assert ssh_children() == []
