"""What a test can do to the simulated service beside its API, in the event loop of the service and over HTTP."""

import asyncio
import dataclasses
import inspect
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException
from fastapi import Request as HttpRequest

from tests.vast.fake.api import WorldOf
from tests.vast.fake.contract import Contract
from tests.vast.fake.faults import Faults, Machine
from tests.vast.fake.market import Row
from tests.vast.fake.world import API_KEY, World

POLL_SECONDS = 0.02


class Control:
    """Every public method is also `POST /_control/<name>`."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def reset(self) -> None:
        await self._world.reset()

    async def rent(
        self,
        public_key: str = "",
        label: str | None = None,
        offer: int | None = None,
        disk: float = 40.0,
        image: str = "nvcr.io/nvidia/tritonserver:25.10-vllm-python-py3",
        env: dict[str, str] | None = None,
        onstart: str | None = None,
        seconds: float = 30.0,
        running: bool = True,
    ) -> Row:
        """An instance that runs, or is just made; let in with the key; the cheapest offer that has the disk."""
        if offer is None:
            fitting = [each for each in self._world.offers if each["disk_space"] >= disk]
            offer = min(fitting, key=lambda each: float(each["dph_total"]))["id"]
        body = {"image": image, "disk": disk, "label": label, "env": env or {}, "onstart": onstart}
        contract = self._world.rent(offer, {**body, "runtype": "ssh_direc ssh_proxy"})
        if public_key:
            contract.authorize([public_key])
        return await self.wait_status(contract.ident, "running", seconds) if running else contract.row()

    async def wait_status(self, ident: int, status: str, seconds: float = 20.0) -> Row:
        contract = self._contract(ident)
        try:
            async with asyncio.timeout(seconds):
                while contract.status != status:  # noqa: ASYNC110 - it changes by itself, and only tests wait
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise AssertionError(
                f"instance {ident} is {contract.status} ({contract.message}), not {status}, after {seconds:g} s"
            ) from None
        return contract.row()

    async def cut(self, ident: int) -> None:
        await self._contract(ident).host.cut()

    async def freeze(self, ident: int) -> None:
        self._contract(ident).host.freeze()

    async def thaw(self, ident: int) -> None:
        self._contract(ident).host.thaw()

    async def refuse(self, ident: int, refused: bool = True, direct: bool = True, proxy: bool = True) -> None:
        host = self._contract(ident).host
        if refused:
            host.refuse(direct=direct, proxy=proxy)
        else:
            host.open(direct=direct, proxy=proxy)

    async def change_host_key(self, ident: int) -> None:
        self._contract(ident).host.change_host_key()

    async def move(self, ident: int, address: str = "127.0.0.1") -> None:
        await self._contract(ident).host.move(address)

    async def hide_rsync(self, ident: int) -> None:
        await self._contract(ident).host.hide("rsync")

    async def crash(self, ident: int) -> None:
        await self._contract(ident).host.stop()

    async def vanish(self, ident: int) -> None:
        self._contract(ident)
        await self._world.end(ident)

    async def stop(self, ident: int) -> None:
        await self._contract(ident).stop()

    async def interrupt(self, ident: int) -> None:
        await self._contract(ident).interrupt()

    async def set_status(self, ident: int, status: str | None, message: str | None = None) -> None:
        self._contract(ident).set_status(status, message)

    async def state(self) -> dict[str, Any]:
        world = self._world
        return {
            "requests": [dataclasses.asdict(request) for request in world.requests],
            "instances": [contract.row() for contract in world.contracts.values()],
            "faults": dataclasses.asdict(world.faults),
            "machine": dataclasses.asdict(world.machine),
            "spent": world.spent(),
        }

    def _contract(self, ident: int) -> Contract:
        return self._world.contract(ident)


router = APIRouter(prefix="/_control")
Values = Annotated[dict[str, Any], Body()]


def _authorize(request: HttpRequest) -> None:
    if request.headers.get("authorization") != f"Bearer {API_KEY}":
        raise HTTPException(401, "the API key of the simulation is needed")


@router.get("/state")
async def get_state(request: HttpRequest, world: WorldOf) -> dict[str, Any]:
    _authorize(request)
    return await Control(world).state()


@router.patch("/faults")
async def patch_faults(request: HttpRequest, values: Values, world: WorldOf) -> dict[str, Any]:
    _authorize(request)
    _check_names(values, Faults)
    for name, value in values.items():
        setattr(world.faults, name, value)
    return dataclasses.asdict(world.faults)


@router.patch("/machine")
async def patch_machine(request: HttpRequest, values: Values, world: WorldOf) -> dict[str, Any]:
    _authorize(request)
    _check_names(values, Machine)
    world.machine = dataclasses.replace(world.machine, **values)
    return dataclasses.asdict(world.machine)


@router.post("/{name}")
async def act(name: str, request: HttpRequest, world: WorldOf, values: Values | None = None) -> Any:
    _authorize(request)
    method = None if name.startswith("_") else getattr(Control(world), name, None)
    if method is None:
        raise HTTPException(404, f"there is no control {name}")
    try:
        inspect.signature(method).bind(**(values or {}))
        return await method(**(values or {}))
    except (TypeError, KeyError, AssertionError) as error:
        raise HTTPException(400, str(error)) from None


def _check_names(values: dict[str, Any], kind: type[Faults] | type[Machine]) -> None:
    unknown = set(values) - {each.name for each in dataclasses.fields(kind)}
    if unknown:
        raise HTTPException(400, f"unknown: {', '.join(sorted(unknown))}")
