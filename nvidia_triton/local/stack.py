"""Postgres, Triton, the dispatcher and the API: started together, stopped in order."""

import asyncio
import contextlib
import platform
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from nvidia_triton.local.engine import check_system_library
from nvidia_triton.local.interpreters import has_tritonserver_wheel
from nvidia_triton.local.llama_server import NAME, LlamaServer, reason_for_it
from nvidia_triton.local.postgres import HOST, PostgresServer
from nvidia_triton.local.process import Child, Console, LocalError, describe_exit, shielded
from nvidia_triton.local.settings import SIMULATION, LocalSettings, check_port
from nvidia_triton.local.triton import TritonServer
from nvidia_triton.vast.servers import ServersFile

# How often a start that takes long says what it waits for.
PROGRESS_SECONDS = 5.0
POLL_SECONDS = 0.05


class Stack:
    """Starts the processes and stops them in order; `failure` ends when one of them dies on its own."""

    def __init__(self, settings: LocalSettings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._servers = ServersFile(settings.local_dir, settings.servers_file)
        self._children: dict[str, Child] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()
        self._stopping = False

    async def start(self) -> None:
        """Returns when everything answers.

        Raises:
            LocalError: something cannot start; call `stop` all the same.
        """
        settings = self.settings
        check_port(settings.api_host, settings.api_port, "the API", "API_PORT")
        if settings.triton:
            settings.triton.check_models()
            if settings.environment.get("ENGINE") != SIMULATION:
                check_system_library()
            check_port(HOST, settings.triton.http_port, "Triton", "TRITON_HTTP_PORT")
            check_port(HOST, settings.triton.grpc_port, "Triton", "TRITON_GRPC_PORT")
            check_port(HOST, settings.triton.metrics_port, "Triton", "TRITON_METRICS_PORT")
        if settings.llama_server:
            settings.llama_server.check()
            check_system_library()
            check_port(HOST, settings.llama_server.port, "llama.cpp's server", "LLAMA_SERVER_PORT")
            if not has_tritonserver_wheel():
                self.console.say(reason_for_it(platform.machine()))
            self._servers.put_entry(settings.llama_server.entry())
        else:
            # Of a run that was killed.
            self._servers.remove(NAME)
        try:
            async with asyncio.TaskGroup() as group:
                if settings.triton:
                    group.create_task(self._start_triton(settings.triton))
                if settings.llama_server:
                    group.create_task(self._start_llama_server(settings.llama_server))
                group.create_task(self._start_database_and_app())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def stop(self) -> None:
        """Ends what runs, those who use a thing before the thing itself."""
        self._stopping = True
        if self.settings.llama_server:
            self._servers.remove(NAME)
        for name, polite, grace, rude in (
            ("migrate", signal.SIGTERM, 2.0, signal.SIGKILL),
            ("api", signal.SIGTERM, 12.0, signal.SIGKILL),
            ("capacity", signal.SIGTERM, 5.0, signal.SIGKILL),
            ("dispatcher", signal.SIGTERM, 10.0, signal.SIGKILL),
            # Its parent kills the server itself, after 12 s or at a second signal.
            ("triton", signal.SIGTERM, 14.0, signal.SIGTERM),
            ("llama", signal.SIGTERM, 5.0, signal.SIGKILL),
            ("postgres", signal.SIGINT, 10.0, signal.SIGQUIT),
        ):
            if process := self._children.pop(name, None):
                await process.stop(polite, grace=grace, hurry=self._hurry, rude=rude)
        await asyncio.gather(*self._watches, return_exceptions=True)
        if self.failure.done() and not self.failure.cancelled():
            self.failure.exception()

    def hurry(self) -> None:
        """Cuts every grace time short."""
        self._hurry.set()

    async def _start_database_and_app(self) -> None:
        if self.settings.postgres:
            await self._start_postgres(self.settings.postgres)
        await self._migrate()
        await self._spawn("dispatcher", shielded([sys.executable, "-m", "app.worker"]))
        await self._spawn("api", shielded([sys.executable, "-m", "app.main"]))
        if self.settings.has_pools():
            await self._spawn("capacity", shielded([sys.executable, "-m", "app.capacity"]))
        await self._until(lambda: answers(self.settings.api_port, "/health/ready"), "The API starts")

    async def _start_postgres(self, server: PostgresServer) -> None:
        await asyncio.to_thread(server.prepare)
        check_port(HOST, server.port, "Postgres", "POSTGRES_PORT")
        process = await self._spawn("postgres", server.command(), env=server.environment())

        async def ready() -> bool:
            return server.is_ready(process.pid)

        await self._until(ready, "Postgres starts")
        await asyncio.to_thread(server.ensure_database)

    async def _migrate(self) -> None:
        command = shielded([sys.executable, "-m", "alembic", "upgrade", "head"])
        process = await self._spawn("migrate", command, watched=False)
        async with self._reporting("The migrations run"):
            returncode = await process.wait()
        if returncode:
            raise LocalError(
                f"The migrations failed ({describe_exit(returncode)}): the lines of `migrate` above say why."
            )
        self._children.pop("migrate", None)

    async def _start_triton(self, server: TritonServer) -> None:
        await asyncio.to_thread(server.prepare)
        await self._spawn("triton", shielded(server.supervised(), death_signal=signal.SIGTERM))
        await self._until(
            lambda: answers(server.http_port, "/v2/health/ready"), f"Triton loads {', '.join(server.models)}"
        )

    async def _start_llama_server(self, server: LlamaServer) -> None:
        await self._spawn("llama", shielded(server.command()))
        await self._until(lambda: answers(server.port, "/health"), f"llama.cpp loads {server.model.name}")

    async def _spawn(
        self, name: str, command: list[str], *, env: dict[str, str] | None = None, watched: bool = True
    ) -> Child:
        env = env or self.settings.environment
        process = await Child.start(name, command, self.console, env=env, cwd=self.settings.root)
        self._children[name] = process
        if watched:
            self._watches.append(asyncio.create_task(self._watch(process)))
        return process

    async def _watch(self, process: Child) -> None:
        returncode = await process.wait()
        if not self._stopping and not self.failure.done():
            if returncode == -signal.SIGKILL:
                advice = (
                    "something outside ended it, perhaps the kernel for want of memory; `make run` goes on from there."
                )
            else:
                advice = "its lines above say why, and `LOG_LEVEL=DEBUG make run` shows more of them."
            self.failure.set_exception(
                LocalError(f"{process.name} stopped on its own ({describe_exit(returncode)}): {advice}")
            )

    async def _until(self, ready: Callable[[], Awaitable[bool]], doing: str) -> None:
        """Waits as long as it takes: a process that ends meanwhile ends the start as well, by `failure`."""
        async with self._reporting(doing):
            while not await ready():  # noqa: ASYNC110 - it is another process that is waited for
                await asyncio.sleep(POLL_SECONDS)

    @contextlib.asynccontextmanager
    async def _reporting(self, doing: str) -> AsyncIterator[None]:
        """Says every few seconds what is still being waited for."""
        started = time.monotonic()

        async def report() -> None:
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                seconds = time.monotonic() - started
                self.console.say(f"{doing}, for {seconds:.0f} s so far; its own lines say more. Ctrl-C ends it.")

        reports = asyncio.create_task(report())
        try:
            yield
        finally:
            reports.cancel()


async def answers(port: int, path: str) -> bool:
    """Whether a GET on loopback is answered with 200."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(5):
            status = await reader.readline()
        return status.split()[1:2] == [b"200"]
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
