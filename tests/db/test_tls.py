"""DATABASE_URL for a Postgres that demands TLS: pool, listener, migrations and psql take it alike."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from app.config import Settings
from app.db.engine import open_database
from app.db.faults import DATABASE_FAULT
from app.queue.notify import Listener
from app.services.health import Health
from tests.conftest import ROOT, alembic
from tests.db.tls_server import ADVICE, TlsPostgres, programs, tls_postgres, version
from tests.postgres_server import RunningPostgres

BIN = programs()
pytestmark = pytest.mark.skipif(BIN is None, reason=ADVICE)


@pytest.fixture(scope="module")
def running() -> Iterator[TlsPostgres]:
    assert BIN is not None
    with tls_postgres(BIN) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tls(running: TlsPostgres) -> AsyncIterator[TlsPostgres]:
    connection = await asyncpg.connect(running.url(database="postgres", sslmode="require"))
    await connection.execute("CREATE DATABASE tickets")
    await connection.execute("CREATE ROLE certified LOGIN")
    await connection.close()
    yield running


async def encrypted(url: str) -> Any:
    """Whether the pool's connection is, after a notification has passed through the listener's."""
    settings = Settings(database_url=url)
    heard = asyncio.Event()
    listener = asyncio.create_task(
        Listener(settings.listen_arguments, {"tls": lambda payload: heard.set() if payload else None}).run()
    )
    async with open_database(settings) as database:

        async def notified() -> None:
            while not heard.is_set():
                async with database.hot() as connection:
                    await connection.execute("SELECT pg_notify('tls', 'x')")
                await asyncio.sleep(0.05)

        await asyncio.wait_for(notified(), 30)
        listener.cancel()
        async with database.hot() as connection:
            return await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


def psql(server: TlsPostgres, url: str) -> subprocess.CompletedProcess[str]:
    psql = next((path for path in (server.bin / "psql", Path("/usr/bin/psql")) if path.exists()), None)
    if psql is None:
        pytest.skip("no psql with TLS is installed: apt-get install -y postgresql-client")
    return subprocess.run(
        [psql, "-XAtc", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", url],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def urls(server: TlsPostgres) -> dict[str, str]:
    ca = str(server.ca)
    client = {"sslcert": str(server.certificate), "sslkey": str(server.key)}
    return {
        "require": server.url(sslmode="require"),
        "verify-ca": server.url("127.0.0.1", sslmode="verify-ca", sslrootcert=ca),
        "verify-full": server.url(sslmode="verify-full", sslrootcert=ca),
        "certificate": server.url(user="certified", sslmode="verify-full", sslrootcert=ca, **client),
        "options": server.url(sslmode="require", options="-c statement_timeout=12s --search_path=public"),
        "two hosts": server.url(
            f"127.0.0.1:1,localhost:{server.port}", sslmode="require", target_session_attrs="read-write"
        ),
    }


@pytest.mark.parametrize("kind", ["require", "verify-ca", "verify-full", "certificate", "options", "two hosts"])
async def test_each_way_to_ask_for_tls_works_everywhere(tls: TlsPostgres, kind: str) -> None:
    url = urls(tls)[kind]
    assert await encrypted(url) is True
    shown = await asyncio.to_thread(alembic, url, "current")
    assert shown.returncode == 0, shown.stderr
    told = await asyncio.to_thread(psql, tls, url)
    assert told.stdout.strip() == "t", told.stderr


async def test_the_host_that_takes_writes_is_chosen(tls: TlsPostgres, postgres: RunningPostgres) -> None:
    admin = await asyncpg.connect(tls.url(sslmode="require"))
    await admin.execute("CREATE ROLE reader LOGIN PASSWORD 'x'")
    await admin.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    await admin.close()
    here = await asyncpg.connect(postgres.url)
    await here.execute("CREATE ROLE reader LOGIN PASSWORD 'x'")
    await here.close()
    hosts = f"localhost:{tls.port},127.0.0.1:{postgres.port}"
    for wanted, port in (("any", tls.port), ("read-write", postgres.port), ("read-only", tls.port)):
        url = f"postgresql://reader:x@{hosts}/tickets?target_session_attrs={wanted}"
        async with open_database(Settings(database_url=url)) as database, database.hot() as connection:
            assert await connection.fetchval("SELECT current_setting('port')::int") == port


async def test_a_unix_socket_needs_no_tls(tls: TlsPostgres) -> None:
    assert await encrypted(tls.socket_url()) is False
    assert (await asyncio.to_thread(psql, tls, tls.socket_url())).stdout.strip() == "f"


async def test_the_variables_of_libpq_fill_what_the_url_leaves_out(
    tls: TlsPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tls.url(sslmode="verify-full")
    for name, value in {
        "PGHOST": "localhost",
        "PGPORT": str(tls.port),
        "PGUSER": "certified",
        "PGDATABASE": "tickets",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": str(tls.ca),
        "PGSSLCERT": str(tls.certificate),
        "PGSSLKEY": str(tls.key),
        "PGOPTIONS": "-c statement_timeout=7s",
        "PGAPPNAME": "from-the-variable",
    }.items():
        monkeypatch.setenv(name, value)
    assert await encrypted("postgresql://") is True
    assert await encrypted(url) is True
    async with open_database(Settings(database_url="postgresql://")) as database, database.hot() as connection:
        row = await connection.fetchrow(
            "SELECT current_setting('statement_timeout'), current_setting('application_name'), current_user,"
            " current_setting('plan_cache_mode')"
        )
    assert tuple(row) == ("7s", "from-the-variable", "certified", "force_generic_plan")


async def test_the_machines_own_authorities(tls: TlsPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca))
    assert await encrypted(tls.url(sslrootcert="system")) is True
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.other_ca))
    assert "certificate" in await fault(tls.url(sslrootcert="system"))


async def fault(url: str) -> str:
    async with open_database(Settings(database_url=url)) as database:
        health = await Health(database).database()
    assert health.lasting
    assert not health.reachable
    return health.detail


@pytest.mark.parametrize(
    ("host", "query", "sentence"),
    [
        ("localhost", {"sslmode": "verify-full", "sslrootcert": "other_ca"}, "The certificate of Postgres is not"),
        ("127.0.0.1", {"sslmode": "verify-full", "sslrootcert": "ca"}, "IP address mismatch"),
        ("localhost", {"sslmode": "disable"}, "SQLSTATE 28000"),
    ],
)
async def test_what_cannot_work_is_named_and_not_waited_for(
    tls: TlsPostgres, host: str, query: dict[str, str], sentence: str
) -> None:
    given = {name: str(getattr(tls, value, value)) for name, value in query.items()}
    url = tls.url(host, **given)
    assert sentence in await fault(url)
    for module in ("app.main", "app.worker"):
        ended = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", module],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": url, "API_PORT": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == DATABASE_FAULT
        assert sentence in ended.stderr
        assert "Traceback" not in ended.stderr


async def test_a_server_without_tls_is_named(database_url: str) -> None:
    assert "offers no TLS" in await fault(f"{database_url}?sslmode=require")


@pytest.mark.skipif(BIN is not None and version(BIN) < 18, reason="the tables need Postgres 18; this one is older")
async def test_the_migrations_and_the_pool_on_tls(tls: TlsPostgres) -> None:
    url = tls.url(sslmode="verify-full", sslrootcert=str(tls.ca))
    done = await asyncio.to_thread(alembic, url, "upgrade", "head")
    assert done.returncode == 0, done.stderr
    async with open_database(Settings(database_url=url)) as database:
        assert (await Health(database).database()).migrated
