"""The controller of hosts beside the service, on the simulation of Vast.ai with real SSH and Triton."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from app.capacity.__main__ import run
from app.capacity.kinds import Kinds, open_kinds
from app.capacity.pools import load_pools
from app.config import Settings
from app.db.engine import Database
from app.queue.hosts import LeadersHosts, Row
from app.queue.leader import LeaderStore
from nvidia_triton.vast.settings import ROOT
from tests.service import Process, Service, eventually, running_api, running_dispatcher
from tests.vast.conftest import simulated_vast, ssh_key, vast, vast_env

__all__ = ["simulated_vast", "ssh_key", "vast", "vast_env"]

MODEL = "qwen2.5-7b-instruct"
DEFINITION = ROOT / "nvidia_triton" / "vastai_instance_definition.yaml"
POOL: dict[str, Any] = {"name": "chat", "models": [MODEL], "idle_minutes": 0.05, "target_wait": 1}

PRICE = 0.5


@pytest.fixture
async def leader(database: Database) -> LeadersHosts:
    taken = await LeaderStore(database).take("first", 60)
    assert taken is not None
    return LeadersHosts(database, taken.token)


async def reserved(leader: LeadersHosts, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "pool": "p",
        "provider": "vast",
        "label": f"label-{uuid4().hex}",
        "offer": "17",
        "machine": "m1",
        "gpu": "RTX 4090",
        "hourly_price": PRICE,
        "storage_price": 0.01,
        "spot": False,
        "models": ["tiny"],
        "revision": None,
        "reason": "3 tickets wait",
    }
    return await leader.reserve(**values | changes)


class Stage:
    """A service without a server, and controllers that can be started, and ended as a kill ends them."""

    def __init__(self, service: Service, settings: Settings, environment: dict[str, str], folder: Path) -> None:
        self.service = service
        self._environment = environment
        self._folder = folder
        self._definition = folder / "definition.yaml"
        self.key = Path(environment["SSH_KEY"])
        self.settings = settings.model_copy(update={"capacity_definitions": (self._definition,)})

    def _define(self, pool: dict[str, Any]) -> None:
        definition = yaml.safe_load(DEFINITION.read_text()) | {"pools": [POOL | pool]}
        if pool.get("interruptible"):
            definition["bid"] = 0.5
        self._definition.write_text(yaml.safe_dump(definition))

    @asynccontextmanager
    async def controller(self, root: Path = ROOT, **pool: Any) -> AsyncIterator[asyncio.Task[None]]:
        """`root` has the folder `models`."""
        self._define(pool)
        opened = open_kinds(load_pools([self._definition]), self._environment, bind="127.0.0.1", advertised="127.0.0.1")
        of_pools = [replace(kind, settings=replace(kind.settings, root=root)) for kind in opened.of_pools]
        kinds = Kinds(of_pools, opened.budget, opened.poll_seconds)
        task = asyncio.create_task(run(self.settings, kinds, asyncio.Event()))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    def process(self, **pool: Any) -> Process:
        """One that can be killed."""
        self._define(pool)
        given = {name: value for name, value in self._environment.items() if name not in os.environ}
        return Process("app.capacity", self.settings, self._folder / "capacity.log", **given)

    async def sent(self, max_tokens: int = 4, **parameters: Any) -> str:
        """A ticket, as soon as the pool's model is known."""

        async def known() -> bool:
            return MODEL in {model["id"] for model in (await self.service.client.get("/v1/models")).json()["data"]}

        await eventually(known, "the pool's model is listed")
        return await self.service.send(model=MODEL, parameters={"max_tokens": max_tokens} | parameters)

    async def hosts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.service.client.get("/hosts/")).json()
        return found

    async def life(self) -> list[str]:
        """The states that the only host has had."""
        (host,) = await self.hosts()
        events = (await self.service.client.get(f"/hosts/{host['id']}")).json()["events"]
        return list(dict.fromkeys(event["state"] for event in events))


@pytest.fixture
async def stage(
    make_settings: Callable[..., Settings], vast_env: dict[str, str], tmp_path: Path
) -> AsyncIterator[Stage]:
    settings = make_settings(triton_urls=(), capacity_seconds=0.3, capacity_lease_seconds=2.0)
    async with running_api(settings) as service, running_dispatcher(settings):
        yield Stage(service, settings, vast_env, tmp_path)
