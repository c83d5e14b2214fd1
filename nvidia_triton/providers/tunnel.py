"""Local ports that lead to a host's Triton while they are held."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

import httpx

from nvidia_triton.providers.base import Address, DeployFailed
from nvidia_triton.providers.hosts import context_of, ssh_host
from nvidia_triton.vast.control import ANSWER_SECONDS, LOOPBACK
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.forward import UP_SECONDS, free_port
from nvidia_triton.vast.link import hold
from nvidia_triton.vast.settings import VastSettings
from nvidia_triton.vast.ssh import Connection
from nvidia_triton.vast.work import Work

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0


class Tunnel:
    """See `base.Tunnel`. `bind` is the local address that listens; Triton knows no authentication."""

    def __init__(
        self,
        address: Address,
        definition: InstanceDefinition,
        settings: VastSettings,
        *,
        grpc_port: int = 0,
        http_port: int = 0,
        bind: str = LOOPBACK,
    ) -> None:
        self.address = address
        self.grpc_port = grpc_port or free_port()
        self.http_port = http_port or free_port()
        self._bind = bind
        self._definition = definition
        self._context = context_of(definition, settings, Work())
        self._problem = "SSH has not answered yet"
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def problem(self) -> str:
        if self._task is not None and self._task.done() and not self._stop.is_set():
            return f"its task has ended ({self._task.exception()!r})"
        return self._problem

    async def start(self) -> None:
        """
        Raises:
            DeployFailed: the forwards do not stand in time; it does not go on trying then.
        """
        self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(UP_SECONDS):
                while self.problem and not self._task.done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            problem = self.problem
            await self.stop()
            raise DeployFailed("ssh", problem) from None
        except BaseException:
            await self.stop()
            raise
        if self._task.done():
            self._task.result()

    async def healthy(self) -> bool:
        url = f"http://{LOOPBACK}:{self.http_port}/v2/health/live"
        try:
            async with httpx.AsyncClient(timeout=ANSWER_SECONDS, trust_env=False) as client:
                return (await client.get(url)).status_code == 200
        except httpx.HTTPError:
            return False

    async def stop(self) -> None:
        self._stop.set()
        task, self._task = self._task, None
        if task is not None:
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
        self._says("it was stopped")

    async def _run(self) -> None:
        turn, pause = 0, FIRST_PAUSE_SECONDS
        far = self._definition.triton.ports
        ports = {self.grpc_port: far.grpc, self.http_port: far.http}
        while not self._stop.is_set():
            stood = await self._hold(turn, ports)
            turn, pause = (0, FIRST_PAUSE_SECONDS) if stood else (turn + 1, pause * 2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause, LONGEST_PAUSE_SECONDS)):
                    await self._stop.wait()

    async def _hold(self, turn: int, ports: dict[int, int]) -> bool:
        """One run of ssh; whether the forwards stood."""
        host = ssh_host(self.address, self._definition)
        if not host.addresses:
            self._says(f"{host.name} has no address yet")
            return False
        try:
            self._context.state.prepare()
            connection = Connection(self._context, host, host.addresses[turn % len(host.addresses)])
            stood, problem = await hold(connection, ports, self._stop, up=lambda: self._says(""), bind=self._bind)
        except TargetError as error:
            stood, problem = False, str(error)
        self._says(self._context.settings.redact(problem) or "ssh has ended")
        return stood

    def _says(self, problem: str) -> None:
        self._problem = problem
        self._changed.set()
