"""The processes under measurement, on free ports and a database of their own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil

from app.config import Settings
from app.db.ids import uuid7
from nvidia_triton.local.settings import free_ports
from tests.conftest import alembic
from tests.postgres_server import RunningPostgres, start_postgres
from tests.servers import RunningTriton, start_triton
from tests.service import Process

CONCURRENCY = 64


class Bench:
    """A Postgres with fsync on, a tritonserver with the models of bench/models, and what is started beside them."""

    def __init__(self, directory: Path, postgres: RunningPostgres, triton: RunningTriton, settings: Settings) -> None:
        self.directory = directory
        self.postgres = postgres
        self.triton = triton
        self.settings = settings
        self.context = uuid7()

    async def connect(self) -> Any:
        return await asyncpg.connect(self.settings.database_url)

    async def execute(self, statement: str, *arguments: Any) -> None:
        connection = await self.connect()
        await connection.execute(statement, *arguments)
        await connection.close()

    async def value(self, query: str) -> Any:
        connection = await self.connect()
        found = await connection.fetchval(query)
        await connection.close()
        return found

    async def clear(self) -> None:
        await self.execute("TRUNCATE results, attempts CASCADE")

    async def backlog(self, model: str, count: int) -> None:
        """Fills the queue as submits would."""
        await self.execute(
            "INSERT INTO results (id, context_id, model, parameters)"
            ' SELECT uuidv7(), $1, $2, \'{"n": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 1}\''
            " FROM generate_series(1, $3::int)",
            self.context,
            model,
            count,
        )
        await self.execute("VACUUM ANALYZE results")

    def dispatcher(self, **environment: str) -> Process:
        log = self.directory / "dispatcher.log"
        return Process("app.worker", self.settings, log, LOG_LEVEL="WARNING", **environment)

    def api(self, **environment: str) -> Process:
        return Process("app.main", self.settings, self.directory / "api.log", LOG_LEVEL="WARNING", **environment)

    async def serving(self) -> None:
        """Waits until the API answers."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            while True:
                try:
                    if (await client.get("/health/ready")).json()["triton"][0]["up"]:
                        return
                except (httpx.TransportError, KeyError):
                    pass
                await asyncio.sleep(0.05)

    async def all_settled(self) -> None:
        """Waits until nothing is pending."""
        while await self.value("SELECT count(*) FROM results WHERE status = 'pending'"):  # noqa: ASYNC110 - others do
            await asyncio.sleep(0.05)

    async def settled(self, count: int) -> float:
        """Waits until `count` results are settled; returns the seconds from the first claim to the last settle."""
        connection = await self.connect()
        pending = "SELECT count(*) FROM results WHERE status = 'pending'"
        while await connection.fetchval(pending):  # noqa: ASYNC110 - others do the work
            await asyncio.sleep(0.05)
        row = await connection.fetchrow(
            "SELECT count(*) AS n, extract(epoch FROM max(completed_at) - min(started_at))::float8 AS seconds"
            " FROM results WHERE status = 'completed'"
        )
        await connection.close()
        assert row["n"] == count, row
        return float(row["seconds"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.api_port}"


@asynccontextmanager
async def running_bench() -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        postgres = start_postgres(directory / "postgres", fsync=True, settings={"shared_buffers": "512MB"})
        triton = start_triton(
            directory / "triton", ("noop", "half-second", "clock", "told", "tokens"), Path(__file__).with_name("models")
        )
        try:
            assert alembic(postgres.url, "upgrade", "head").returncode == 0
            settings = Settings(
                database_url=postgres.url,
                triton_urls=(triton.grpc_url,),
                api_port=free_ports(1)[0],
                model_concurrency=CONCURRENCY,
            )
            bench = Bench(directory, postgres, triton, settings)
            await bench.execute("INSERT INTO contexts (id, content) VALUES ($1, 'ping')", bench.context)
            yield bench
        finally:
            triton.stop()
            postgres.stop()


async def output_of(module: str, *arguments: object) -> float:
    """As outputs_of, where it prints one number."""
    (output,) = await outputs_of(module, *arguments)
    return output


async def outputs_of(module: str, *arguments: object) -> list[float]:
    """Runs a measuring program of this folder; it prints numbers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *map(str, arguments), stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, module
    return [float(each) for each in out.split()]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its descendants, those that have ended included."""
    total = 0.0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    times = parent.cpu_times()
    return total + times.children_user + times.children_system


class Stopwatch:
    def __enter__(self) -> Stopwatch:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
