"""A Postgres, a tritonserver, one API and three dispatchers, all ours to kill; they die with this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import psutil

from app.config import Settings
from nvidia_triton.local.process import LocalError, describe_exit, shielded
from nvidia_triton.local.settings import free_ports
from nvidia_triton.local.triton import HOST, STUB
from tests.crash.schedule import DISPATCHERS
from tests.llama import RunningLlama
from tests.postgres_server import RunningPostgres, start_postgres
from tests.servers import RunningTriton, start_triton

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("noop", "tiny")
LEASE_SECONDS = 3.0
START_SECONDS = 30.0
ERROR_LINE = re.compile(r"^[ |]*([\w.]*(?:Error|Exception): .*)$", re.MULTILINE)

SETTINGS = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "POLL_SECONDS": "0.5",
    "PROBE_SECONDS": "0.5",
    # All dispatchers together no more than the model's engine takes at once, so that silence means a fault.
    "MODEL_CONCURRENCY": "20",
    # Shorter than the longest freeze and than a reload.
    "IDLE_TIMEOUT_SECONDS": "4",
    "RUN_TIMEOUT_SECONDS": "60",
    "MODEL_RELOADS_PER_HOUR": "1000",
    # Attempts that our own kills cost must not make a ticket fail.
    "MAX_ATTEMPTS": "1000",
    "LOG_LEVEL": "INFO",
}

# It is slow, and what it cannot run at once waits within it.
LLAMA = {"kind": "openai", "name": "llama", "models": {"demo": "tiny"}, "timeouts": {"first_token": 30.0}}

# Writes down every change of a row that was final, however short it lasted.
WITNESS = """
CREATE TABLE crash_changes_after_the_end (id uuid NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION crash_witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO crash_changes_after_the_end (id) VALUES (old.id);
    RETURN NULL;
END $$;
CREATE TRIGGER crash_witness_update AFTER UPDATE ON results
    FOR EACH ROW WHEN (old.status <> 'pending') EXECUTE FUNCTION crash_witness();
CREATE TRIGGER crash_witness_delete AFTER DELETE ON results FOR EACH ROW EXECUTE FUNCTION crash_witness();
"""

# What a connection that listens ran last: LISTEN itself or the Listener's look whether it still lives.
CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND (query ILIKE 'listen %' OR query = 'SELECT 1')
"""


class Service:
    """The API or a dispatcher as a process of its own."""

    def __init__(self, name: str, module: str, environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.wanted = False
        self._module = module
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def label(self) -> str:
        """How a dispatcher names itself in the ledger."""
        assert self._process is not None
        return f"{socket.gethostname()}:{self._process.pid}"

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                shielded([sys.executable, "-m", self._module]),
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wanted = True

    def kill(self) -> None:
        self.wanted = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def ended_by_itself(self) -> str | None:
        """How it ended, when nobody asked it to, with the last error of its log."""
        if self.wanted and self._process is not None and (code := self._process.poll()) is not None:
            errors = ERROR_LINE.findall(self.log.read_text(errors="replace")[-20_000:])
            return f"{describe_exit(code)}, {errors[-1] if errors else 'without a word'}"
        return None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Stack:
    """The whole installation in one directory."""

    def __init__(
        self,
        api_url: str,
        postgres: RunningPostgres,
        triton: RunningTriton,
        llama: RunningLlama | None,
        services: list[Service],
    ) -> None:
        self.api_url = api_url
        self.postgres = postgres
        self.triton = triton
        self.llama = llama
        self.api, *self.dispatchers = services
        self._frozen: list[psutil.Process] = []

    @property
    def services(self) -> list[Service]:
        return [self.api, *self.dispatchers]

    @property
    def stubs(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.triton.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.cmdline()[:1] and child.cmdline()[0].endswith(STUB):
                    found.append(child)
        return sorted(found, key=lambda each: each.pid)

    def freeze_postgres(self) -> None:
        """Stops the postmaster, which then makes no more backends, and all backends."""
        postmaster = psutil.Process(self.postgres.pid)
        postmaster.suspend()
        self._frozen = [postmaster, *postmaster.children(recursive=True)]
        for backend in self._frozen[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                backend.suspend()

    def thaw_postgres(self) -> None:
        for process in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._frozen = []

    async def cut_listeners(self) -> int:
        connection = await asyncpg.connect(self.postgres.url, timeout=5, command_timeout=5)
        try:
            return int(await connection.fetchval(CUT))
        finally:
            connection.terminate()

    async def start_postgres(self) -> None:
        await _insist(self.postgres.start)

    async def start_triton(self) -> None:
        await _insist(self.triton.start)

    def stop_services(self) -> None:
        for service in self.services:
            service.kill()


async def _insist(start: Callable[[], None]) -> None:
    """Starts a server, again when it failed: what the killed one left may need a moment to go."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return await asyncio.to_thread(start)
        except LocalError:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def running_stack(directory: Path, *, mixed: bool = False) -> AsyncIterator[Stack]:
    """Brings everything up, migrated; the services are started, not yet waited for.

    `mixed`, llama.cpp's HTTP server has the model `tiny` as well.
    """
    # An account that steps aside for Postgres has to pass through.
    directory.chmod(0o755)  # noqa: ASYNC240
    (port,) = free_ports(1)
    async with contextlib.AsyncExitStack() as cleanup:
        postgres = await asyncio.to_thread(start_postgres, directory / "postgres", fsync=True)
        cleanup.push_async_callback(asyncio.to_thread, postgres.stop)
        triton = await asyncio.to_thread(start_triton, directory / "triton", MODELS)
        cleanup.push_async_callback(asyncio.to_thread, triton.kill)
        inherited = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
        environment = inherited | SETTINGS
        environment |= {"DATABASE_URL": postgres.url, "TRITON_URLS": f"{HOST}:{triton.server.grpc_port}"}
        environment |= {"API_HOST": HOST, "API_PORT": str(port), "PYTHONUNBUFFERED": "1"}
        llama = None
        if mixed:
            llama = await asyncio.to_thread(RunningLlama, directory / "llama.log")
            cleanup.push_async_callback(asyncio.to_thread, llama.kill)
            file = directory / "servers.json"
            file.write_text(json.dumps({"servers": [LLAMA | {"url": llama.url}]}))
            environment["TRITON_SERVERS_FILE"] = str(file)
        await asyncio.to_thread(_migrate, environment)
        connection = await asyncpg.connect(postgres.url)
        await connection.execute(WITNESS)
        await connection.close()
        services = [Service("api", "app.main", environment, directory / "api.log")]
        for n in range(DISPATCHERS):
            services.append(Service(f"dispatcher {n}", "app.worker", environment, directory / f"dispatcher-{n}.log"))
        stack = Stack(f"http://{HOST}:{port}", postgres, triton, llama, services)
        cleanup.callback(stack.thaw_postgres)
        cleanup.callback(stack.stop_services)
        for service in services:
            service.start()
        yield stack


def _migrate(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise LocalError(f"The migrations failed: {done.stderr.strip()}")
