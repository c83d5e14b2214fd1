"""The simulated service in a thread of this process."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.vast.fake.api import create_app
from tests.vast.fake.control import Control, router
from tests.vast.fake.faults import Faults, Machine
from tests.vast.fake.host import Host
from tests.vast.fake.market import Row
from tests.vast.fake.prerequisites import tool
from tests.vast.fake.provision import Engine
from tests.vast.fake.world import API_KEY, Request, World

T = TypeVar("T")
START_SECONDS = 20.0
CALL_SECONDS = 60.0


class FakeVast:
    """See the package for what it can do. `directory` takes the machines' files; nothing else is left behind."""

    def __init__(self, directory: Path, *, boot_seconds: float = 0.2, port: int = 0) -> None:
        self.api_key = API_KEY
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._world = World(directory, Engine.prepare(directory / "triton"), boot_seconds)
        self._control = Control(self._world)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="simulated vast", daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> FakeVast:
        self._thread.start()
        assert self._started.wait(START_SECONDS), "the simulated service did not start"
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.reset()
        assert self._server is not None
        self._server.should_exit = True
        self._server.force_exit = True
        # The machines die with this thread whatever happens in it.
        self._thread.join(START_SECONDS)

    @property
    def faults(self) -> Faults:
        return self._world.faults

    @property
    def machine(self) -> Machine:
        return self._world.machine

    @machine.setter
    def machine(self, machine: Machine) -> None:
        self._world.machine = machine

    @property
    def boot_seconds(self) -> float:
        return self._world.boot_seconds

    @boot_seconds.setter
    def boot_seconds(self, seconds: float) -> None:
        self._world.boot_seconds = seconds

    @property
    def offers(self) -> list[Row]:
        return self._world.offers

    @property
    def requests(self) -> list[Request]:
        return self._world.requests

    def calls(self, method: str, fragment: str = "") -> list[Request]:
        return [each for each in self.requests if each.method == method and fragment in each.path]

    def instances(self) -> list[Row]:
        return [contract.row() for contract in list(self._world.contracts.values())]

    def instance(self, ident: int) -> Row | None:
        contract = self._world.contracts.get(ident)
        return None if contract is None else contract.row()

    def host(self, ident: int) -> Host:
        return self._world.contract(ident).host

    def spent(self) -> float:
        return self._world.spent()

    def ssh(
        self, ident: int, key: Path, command: str, *, options: tuple[str, ...] = (), seconds: float = 30
    ) -> subprocess.CompletedProcess[str]:
        host = self.host(ident)
        return subprocess.run(
            [
                *(tool("ssh"), "-F", "/dev/null", "-i", str(key), "-p", str(host.port)),
                *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"),
                *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
                *(*options, f"root@{host.address}", command),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def reset(self) -> None:
        self._call(self._control.reset())

    def rent(self, public_key: str = "", label: str | None = None, **options: Any) -> Row:
        """Options are those of `Control.rent`: offer, disk, image, env, onstart, seconds, running."""
        return self._call(self._control.rent(public_key, label, **options))

    def wait_status(self, ident: int, status: str, seconds: float = 20.0) -> Row:
        return self._call(self._control.wait_status(ident, status, seconds))

    def cut(self, ident: int) -> None:
        self._call(self._control.cut(ident))

    def freeze(self, ident: int) -> None:
        self._call(self._control.freeze(ident))

    def thaw(self, ident: int) -> None:
        self._call(self._control.thaw(ident))

    def refuse(self, ident: int, refused: bool = True, *, direct: bool = True, proxy: bool = True) -> None:
        self._call(self._control.refuse(ident, refused, direct, proxy))

    def change_host_key(self, ident: int) -> None:
        self._call(self._control.change_host_key(ident))

    def move(self, ident: int, address: str = "127.0.0.1") -> None:
        self._call(self._control.move(ident, address))

    def hide_rsync(self, ident: int) -> None:
        self._call(self._control.hide_rsync(ident))

    def crash(self, ident: int) -> None:
        self._call(self._control.crash(ident))

    def vanish(self, ident: int) -> None:
        self._call(self._control.vanish(ident))

    def stop(self, ident: int) -> None:
        self._call(self._control.stop(ident))

    def interrupt(self, ident: int) -> None:
        self._call(self._control.interrupt(ident))

    def set_status(self, ident: int, status: str | None, message: str | None = None) -> None:
        self._call(self._control.set_status(ident, status, message))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None, "use it as a context manager"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        app = create_app(self._world, router)
        transports: dict[int, asyncio.Transport] = app.state.transports

        class Protocol(H11Protocol):
            """Keeps the connections within reach of a handler that is to cut its own."""

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                self._peer = transport.get_extra_info("peername")[1]
                transports[self._peer] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                transports.pop(self._peer, None)

        config = uvicorn.Config(app, http=Protocol, log_config=None, access_log=False, lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._loop = asyncio.get_running_loop()
        # The socket listens from here on, so that whoever calls now is served once the server is up.
        self._socket.listen(64)
        self._started.set()
        await self._server.serve(sockets=[self._socket])
