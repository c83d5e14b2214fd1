"""A real Postgres and a real tritonserver, once per run; a database of its own for each test that commits."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from app.config import Settings
from app.db.engine import Database, open_database
from app.queue.store import QueueStore
from tests.llama import RunningLlama
from tests.postgres_server import RunningPostgres, folder_in_memory, start_postgres
from tests.servers import RunningTriton, start_triton
from tests.service import Service, running_api, running_dispatcher

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = "template_tickets"
# Few tests that take long: begun last, one of them would keep the others' processes waiting.
FIRST = (
    "vast/gpu/test_up_and_down.py",
    "vast/gpu/test_killed.py",
    "vast/gpu/test_costs.py",
    "openapi/test_responses_routes.py",
    "openapi/test_chats_routes.py",
    "openapi/test_faces_routes.py",
    "openapi/test_native_routes.py",
    "crash/test_crash.py",
    "clients/test_clients.py",
    "test_batch_crash.py",
    "dispatch/test_recovery.py",
    "triton_contract/test_llama.py",
    "test_servers_come_and_go.py",
    "fleet/test_server_rows.py",
    "test_several_hosts.py",
    "local/test_interpreters.py",
)

# What is tried is right or wrong, however long a busy machine takes for it.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Nothing of the environment a test runs in may reach the code under test.
for name in Settings.model_fields:
    os.environ.pop(name.upper(), None)
# Tests of the real engine start it themselves.
os.environ["ENGINE"] = "simulation"


# Who is started in the background of a script has this ignored, and hands that on to every process of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, then those with the most tests."""
    tests = Counter(item.path for item in items)
    place = {ROOT / "tests" / name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: (place.get(item.path, len(FIRST)), -tests[item.path], str(item.path)))


def with_database(url: str, name: str) -> str:
    return url.rsplit("/", 1)[0] + "/" + name


def alembic(
    url: str, *arguments: str, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPostgres]:
    with folder_in_memory(tmp_path_factory.mktemp("postgres")) as folder:
        server = start_postgres(folder / "data", settings={"max_connections": "200"})
        yield server
        server.stop()


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), ("tiny", "slow", "noop", "lora"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLlama]:
    server = RunningLlama(tmp_path_factory.mktemp("llama") / "server.log")
    yield server
    server.kill()


@pytest_asyncio.fixture(scope="session")
async def template(postgres: RunningPostgres) -> str:
    """The name of a migrated database that others are cloned from."""
    connection = await asyncpg.connect(postgres.url)
    await connection.execute(f"CREATE DATABASE {TEMPLATE}")
    await connection.close()
    done = alembic(with_database(postgres.url, TEMPLATE), "upgrade", "head")
    assert done.returncode == 0, done.stderr
    return TEMPLATE


@asynccontextmanager
async def cloned_database(postgres: RunningPostgres, template: str) -> AsyncIterator[str]:
    """The address of a migrated database that is removed in the end."""
    name = f"test_{uuid4().hex}"
    connection = await asyncpg.connect(postgres.url)
    # Without fsync, copying the files takes a third of what writing them through the log does.
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield with_database(postgres.url, name)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest_asyncio.fixture
async def database_url(postgres: RunningPostgres, template: str) -> AsyncIterator[str]:
    async with cloned_database(postgres, template) as url:
        yield url


@pytest_asyncio.fixture
async def rows(database_url: str) -> AsyncIterator[Any]:
    """A connection beside the service's, to look at the tables and to move time."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def make_settings(database_url: str, triton: RunningTriton) -> Callable[..., Settings]:
    """Settings of a service on this test's database, quick enough for tests."""

    def make(**changes: object) -> Settings:
        values: dict[str, object] = {
            "database_url": database_url,
            "triton_urls": (triton.grpc_url,),
            "lease_seconds": 3.0,
            "poll_seconds": 0.2,
            "probe_seconds": 0.3,
            "drain_seconds": 5.0,
            "log_level": "WARNING",
        }
        return Settings(**(values | changes))

    return make


@pytest_asyncio.fixture
async def database(make_settings: Callable[..., Settings]) -> AsyncIterator[Database]:
    async with open_database(make_settings()) as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> QueueStore:
    return QueueStore(database)


@pytest_asyncio.fixture
async def api(make_settings: Callable[..., Settings]) -> AsyncIterator[Service]:
    """The API alone: what is sent waits."""
    async with running_api(make_settings()) as running:
        yield running


@pytest_asyncio.fixture
async def service(make_settings: Callable[..., Settings]) -> AsyncIterator[Service]:
    """The API and a dispatcher."""
    async with AsyncExitStack() as stack:
        settings = make_settings()
        running = await stack.enter_async_context(running_api(settings))
        await stack.enter_async_context(running_dispatcher(settings))
        yield running
