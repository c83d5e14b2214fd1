"""A Postgres of its own for a test session, on a free port."""

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import mkdtemp

import asyncpg
import psutil

from nvidia_triton.local.database import start
from nvidia_triton.local.postgres import PostgresServer
from nvidia_triton.local.settings import free_ports

MEMORY = Path("/dev/shm")
# Half a gigabyte was in use when most of all tests had run.
MEMORY_BYTES = 2 * 1024**3


class RunningPostgres:
    """A started server; its log is `<data_dir>.log`."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._process = start(self.server, self.server.data_dir.with_suffix(".log"))

    def stop(self) -> None:
        """A fast shutdown: open transactions are rolled back."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a power cut would, except for the page cache."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(timeout=30)


def start_postgres(
    data_dir: Path, *, port: int = 0, fsync: bool = False, settings: dict[str, str] | None = None
) -> RunningPostgres:
    """Starts a Postgres on `data_dir`, made when missing, on a free port; it dies with this process.

    Without `fsync` a commit survives a killed Postgres, but not a crash of the machine.
    """
    speed = {} if fsync else {"fsync": "off", "full_page_writes": "off"}
    server = PostgresServer(data_dir.absolute(), port=port or free_ports(1)[0], settings={**speed, **(settings or {})})
    return RunningPostgres(server)


@contextmanager
def folder_in_memory(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, where cloning a database takes a third of the time that it does on a quiet disk.

    It is removed in the end, or by the next run. `otherwise` is used where there is no such memory or too little.
    """
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < MEMORY_BYTES:
        yield otherwise
        return
    prefix = "tickets-tests-"
    for left in MEMORY.glob(f"{prefix}*"):
        if not psutil.pid_exists(int(left.name.split("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=MEMORY))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def refusing_connections(postgres: RunningPostgres, url: str) -> AsyncIterator[None]:
    """Postgres ends the connections to the database, and has none in it until the end."""
    name = url.rpartition("/")[2]
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    try:
        yield
    finally:
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await admin.close()
