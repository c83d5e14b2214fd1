"""A Postgres that no waiting mends is named: at the start, which it ends, and by /health/ready."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.config import Settings
from app.db.faults import DATABASE_FAULT
from tests.conftest import ROOT, alembic, with_database
from tests.postgres_server import RunningPostgres, start_postgres
from tests.service import Process, eventually, running_api

WRONG_PASSWORD = "Postgres refuses the user or the password"
NO_DATABASE = "Postgres has no such database"


def ends(module: str, *arguments: str, **environment: str) -> str:
    """What the process says on its standard error, which ends with the fault's exit code."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "API_PORT": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == DATABASE_FAULT, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("password", "database", "sentence", "state"),
    [("wrong-but-secret", "tickets", WRONG_PASSWORD, "28P01"), (None, "nowhere", NO_DATABASE, "3D000")],
)
async def test_each_process_ends_at_its_start(
    postgres: RunningPostgres, password: str | None, database: str, sentence: str, state: str
) -> None:
    url = with_database(postgres.url, database)
    if password is not None:
        url = url.replace("tickets-dev-only", password)
    for module, *arguments in (("app.main",), ("app.worker",), ("alembic", "upgrade", "head")):
        said = await asyncio.to_thread(ends, module, *arguments, DATABASE_URL=url)
        assert sentence in said
        assert f"(SQLSTATE {state})" in said
        assert "wrong-but-secret" not in said
    said = await asyncio.to_thread(ends, "app.worker", DATABASE_URL=postgres.url, DATABASE_LISTEN_URL=url)
    assert sentence in said
    assert "DATABASE_LISTEN_URL" in said


async def test_a_password_that_changes_later_is_named_and_ends_nothing(
    postgres: RunningPostgres, database_url: str, make_settings: Callable[..., Settings]
) -> None:
    admin = await asyncpg.connect(postgres.url)
    role = f"changing_{uuid4().hex[:8]}"
    await admin.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'first'")
    url = database_url.replace("tickets:tickets-dev-only", f"{role}:first")
    async with running_api(make_settings(database_url=url)) as api:
        assert (await api.client.get("/health/ready")).status_code == 200
        await admin.execute(f"ALTER ROLE {role} PASSWORD 'second'")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)

        async def named() -> Any:
            answer = await api.client.get("/health/ready")
            return answer if answer.status_code == 503 and WRONG_PASSWORD in answer.json()["database"] else None

        answer = await eventually(named, "the fault is named")
        assert "SQLSTATE 28P01" in answer.json()["database"]
        refused = await api.client.post("/contexts/", json={"content": "x"})
        assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
        await admin.execute(f"ALTER ROLE {role} PASSWORD 'first'")

        async def well() -> bool:
            return (await api.client.get("/health/ready")).status_code == 200

        await eventually(well, "it is well again")
    await admin.execute(f"DROP ROLE {role}")
    await admin.close()


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[RunningPostgres]:
    """The first page of one table is not what was written."""
    server = start_postgres(tmp_path / "data")
    assert alembic(server.url, "upgrade", "head").returncode == 0

    async def where() -> str:
        connection = await asyncpg.connect(server.url)
        path = await connection.fetchval("SELECT pg_relation_filepath('alembic_version')")
        await connection.close()
        return str(path)

    file = server.server.data_dir / asyncio.run(where())
    server.stop()
    with file.open("r+b") as page:
        page.seek(100)
        page.write(b"\xff" * 200)
    server.start()
    yield server
    server.stop()


def test_a_damaged_database_is_named(damaged: RunningPostgres) -> None:
    for module in ("app.main", "app.worker"):
        said = ends(module, DATABASE_URL=damaged.url)
        assert "The database is damaged: restore it from a backup (SQLSTATE XX001)." in said


async def test_one_that_is_away_is_waited_for(
    make_settings: Callable[..., Settings], postgres: RunningPostgres, tmp_path: Path
) -> None:
    settings = make_settings(database_url="postgresql://u:x@127.0.0.1:9/none")
    async with Process("app.worker", settings, tmp_path / "log") as worker:
        await worker.says("Postgres cannot be reached; check DATABASE_URL and that it runs.")
        assert worker.process.poll() is None
