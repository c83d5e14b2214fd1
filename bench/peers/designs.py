"""Three ways to run the same jobs: this service, Celery and PgQueuer, each with one API process and one worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
from rich.console import Console

from bench.http_load import Connection
from bench.peers.processes import Part, check_installed, epmd, listens, rabbitmq, redis
from bench.stack import CONCURRENCY, Bench
from nvidia_triton.local.process import LocalError
from nvidia_triton.local.settings import ROOT, free_ports
from tests.postgres_server import RunningPostgres
from tests.service import environment_of

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
DATABASE = "pgqueuer"
IDLE_SECONDS = 0.001
T = TypeVar("T")


class Store(Protocol):
    """What holds what was accepted: a Part, or the Postgres of the bench."""

    name: str

    def start(self) -> None: ...

    def wait(self) -> None: ...

    def kill(self) -> None: ...


class Postgres:
    """The one of the bench, which stays when a design is stopped."""

    name = "Postgres"

    def __init__(self, running: RunningPostgres) -> None:
        self._running = running

    def start(self) -> None:
        self._running.start()

    def wait(self) -> None:
        """Its start waits already."""

    def kill(self) -> None:
        self._running.kill()


class Design:
    """`stores` hold what was accepted; `own` are those of them that are started and stopped with the design."""

    name: str

    def __init__(self, port: int, stores: list[Store], worker: Part, api: Part, own: Sequence[Part] = ()) -> None:
        self.port = port
        self.own = own
        self.stores = stores
        self.worker = worker
        self.api = api

    def send_path(self, model: str) -> str:
        return f"/jobs/{model}"

    def state_path(self, job: dict[str, Any]) -> str:
        return f"/jobs/{job['id']}"

    async def finish(self, connection: Connection, job: dict[str, Any]) -> None:
        """Returns as soon as the job is done."""
        while True:
            _, state = await connection.ask("GET", self.state_path(job))
            if b'"completed"' in state:
                return
            await asyncio.sleep(IDLE_SECONDS)

    async def done(self) -> int:
        """How many jobs have ever been completed."""
        async with httpx.AsyncClient(trust_env=False) as client:
            return int((await client.get(f"http://127.0.0.1:{self.port}/done")).text)

    async def prepare(self) -> None:
        """Starts what is the design's own, once."""
        for part in self.own:
            part.start()
            await asyncio.to_thread(part.wait)

    async def start(self, part: Part) -> None:
        part.start()
        await asyncio.to_thread(part.wait)

    def stop(self) -> None:
        for part in (self.api, self.worker, *reversed(self.own)):
            part.kill()


class Service(Design):
    """This service, as `bench` starts it."""

    name = "this service"

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        directory, port = bench.directory, bench.settings.api_port
        environment = environment_of(bench.settings) | {"LOG_LEVEL": "WARNING"}
        worker = Part("dispatcher", [sys.executable, "-m", "app.worker"], directory / "worker.log", **environment)
        api = Part("API", [sys.executable, "-m", "app.main"], directory / "api.log", listens(port), **environment)
        super().__init__(port, [Postgres(bench.postgres)], worker, api)

    def send_path(self, model: str) -> str:
        return f"/models/send/{model}/{self._bench.context}"

    def state_path(self, job: dict[str, Any]) -> str:
        return f"/results/{job['result_id']}"

    async def finish(self, connection: Connection, job: dict[str, Any]) -> None:
        await connection.ask("GET", self.state_path(job), headers="Prefer: wait=10\r\n")

    async def done(self) -> int:
        return int(await self._bench.value("SELECT count(*) FROM results WHERE status = 'completed'"))


class Celery(Design):
    name = "Celery"

    def __init__(self, bench: Bench) -> None:
        directory = bench.directory / "celery"
        directory.mkdir()
        port, broker, distribution, names, results = free_ports(5)
        environment = {
            "TRITON_URL": bench.triton.grpc_url,
            "BROKER_URL": f"amqp://guest:guest@127.0.0.1:{broker}//",
            "RESULT_URL": f"redis://127.0.0.1:{results}/0",
        }
        options = ["-P", "threads", "-c", str(CONCURRENCY), "-l", "WARNING", "--without-gossip", "--without-mingle"]
        worker = python(directory, "celery", "-A", "bench.peers.with_celery", "worker", *options, **environment)
        stores = [rabbitmq(directory / "rabbitmq", broker, distribution, names), redis(directory / "redis", results)]
        api = uvicorn(directory, "with_celery", port, **environment)
        super().__init__(port, [*stores], worker, api, [epmd(directory, names), *stores])


class PgQueuer(Design):
    name = "PgQueuer"

    def __init__(self, bench: Bench) -> None:
        directory = bench.directory / "pgqueuer"
        directory.mkdir()
        (port,) = free_ports(1)
        url = f"{bench.settings.database_url.rpartition('/')[0]}/{DATABASE}"
        environment = {"TRITON_URL": bench.triton.grpc_url, "DATABASE_URL": url}
        self._bench = bench
        self._install = python(directory, "bench.peers.with_pgqueuer", INSTALL="1", **environment)
        worker = python(directory, "bench.peers.with_pgqueuer", **environment)
        super().__init__(
            port, [Postgres(bench.postgres)], worker, uvicorn(directory, "with_pgqueuer", port, **environment)
        )

    async def prepare(self) -> None:
        await self._bench.execute(f"CREATE DATABASE {DATABASE}")
        self._install.start()
        await asyncio.to_thread(self._install.finished)


def python(directory: Path, module: str, *arguments: str, **environment: str) -> Part:
    return Part(module, [str(PEERS_PYTHON), "-m", module, *arguments], directory / f"{module}.log", **environment)


def uvicorn(directory: Path, module: str, port: int, **environment: str) -> Part:
    arguments = [f"bench.peers.{module}:api", "--port", str(port), "--no-access-log", "--log-level", "warning"]
    command = [str(PEERS_PYTHON), "-m", "uvicorn", *arguments]
    return Part("API", command, directory / "api.log", listens(port), **environment)


def reported(compare: Callable[[Console], Coroutine[Any, Any, T]], show: Callable[[Console, T], None]) -> int:
    """Shows what was found; returns the exit status."""
    console = Console()
    try:
        check_installed()
        show(console, asyncio.run(compare(console)))
    except LocalError as error:
        console.print(str(error), soft_wrap=True, highlight=False)
        return 1
    return 0
