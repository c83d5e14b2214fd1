"""Each released revision is brought to the newest one beside traffic and an idle transaction."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.config import Settings
from app.db.ids import uuid7
from app.services.health import revisions
from tests.conftest import ROOT, alembic, with_database
from tests.postgres_server import RunningPostgres
from tests.service import eventually, running_api, running_dispatcher

HEAD, KNOWN = revisions()
RELEASED = sorted(KNOWN - {HEAD})
# The first one meets every migration on its way, the last ones are those that installations come from.
SHORT = {RELEASED[0], *RELEASED[-2:]}
ROWS = 3000
# What holds for every revision.
INSERT = "INSERT INTO results (id, context_id, model, parameters) VALUES ($1, $2, 'm', '{}')"
CLAIM = """
UPDATE results SET available_at = now() + interval '1 second', attempt_count = attempt_count + 1
WHERE id = (SELECT id FROM results WHERE status = 'pending' ORDER BY rank, id LIMIT 1 FOR UPDATE SKIP LOCKED)
"""
READ = "SELECT count(*) FROM (SELECT FROM results r JOIN contexts c ON c.id = r.context_id LIMIT 20) found"


class Traffic:
    """Writes and reads without a pause; a statement that fails ends it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.rounds = 0

    async def run(self) -> None:
        connection = await asyncpg.connect(self._url)
        try:
            while True:
                context = uuid7()
                await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", context)
                await connection.execute(INSERT, uuid7(), context)
                await connection.execute(CLAIM)
                await connection.fetchval(READ)
                self.rounds += 1
        finally:
            connection.terminate()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.run()) for _ in range(2)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def goes_on(self) -> None:
        before = self.rounds

        async def moved() -> bool:
            return self.rounds > before + 20

        await eventually(moved, "the traffic goes on")


class Migration:
    """`alembic upgrade head` as a process."""

    def __init__(self, url: str, log: Path, *arguments: str) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alembic", *(arguments or ("upgrade", "head"))],
                cwd=ROOT,
                env={**os.environ, "DATABASE_URL": url},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    async def ended(self) -> int:
        async def code() -> str | None:
            found = self.process.poll()
            return None if found is None else str(found)

        return int(await eventually(code, "the migration ends", 240))


@pytest.fixture
async def old_database(postgres: RunningPostgres, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """At the revision of the parameter, with rows."""
    revision = request.param
    admin = await asyncpg.connect(postgres.url)
    name = f"from_{revision}"
    await admin.execute(f"CREATE DATABASE {name}")
    url = with_database(postgres.url, name)
    done = await asyncio.to_thread(alembic, url, "upgrade", revision)
    assert done.returncode == 0, done.stderr
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", uuid7())
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters) SELECT uuidv7(), id, 'm', '{}'"
        f" FROM contexts, generate_series(1, {ROWS})"
    )
    await connection.close()
    yield url
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def filenodes(connection: Any, tables: list[str]) -> dict[str, int]:
    """A table that is written anew gets another one."""
    rows = await connection.fetch(
        "SELECT oid::regclass::text, relfilenode FROM pg_class WHERE relname = ANY ($1)", tables
    )
    return dict(map(tuple, rows))


@pytest.mark.parametrize(
    "old_database",
    [pytest.param(each, marks=() if each in SHORT else pytest.mark.long) for each in RELEASED],
    indirect=True,
)
async def test_traffic_goes_on_beside_a_migration_and_an_idle_reader(old_database: str, tmp_path: Path) -> None:
    traffic = Traffic(old_database)
    reader = await asyncpg.connect(old_database)
    watch = await asyncpg.connect(old_database)
    tables = [row[0] for row in await watch.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    tables.remove("alembic_version")
    before = await filenodes(watch, tables)
    async with traffic.running():
        transaction = reader.transaction(isolation="repeatable_read")
        await transaction.start()
        for table in tables:
            await reader.fetchval(f'SELECT count(*) FROM "{table}"')
        migration = Migration(old_database, tmp_path / "log")

        async def stuck() -> bool:
            """It waits for the reader: for its lock, or an index for its snapshot."""
            building = await watch.fetchval("SELECT count(*) FROM pg_stat_progress_create_index")
            return building > 0 or "A table is held by" in migration.output or migration.process.poll() is not None

        await eventually(stuck, "the migration meets the reader", 120)
        await traffic.goes_on()
        if migration.process.poll() is None and "A table is held by" in migration.output:
            assert "idle in transaction" in migration.output
        await transaction.rollback()
        assert await migration.ended() == 0, migration.output
        await traffic.goes_on()
    assert await watch.fetchval("SELECT version_num FROM alembic_version") == HEAD
    assert await filenodes(watch, tables) == before
    assert await watch.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
    check = await asyncio.to_thread(alembic, old_database, "check")
    assert check.returncode == 0, check.stdout + check.stderr
    await reader.close()
    await watch.close()


@pytest.mark.parametrize("old_database", ["0003"], indirect=True)
async def test_a_migration_that_was_killed_while_it_built_an_index_is_begun_again(
    old_database: str, tmp_path: Path
) -> None:
    reader = await asyncpg.connect(old_database)
    transaction = reader.transaction(isolation="repeatable_read")
    await transaction.start()
    await reader.fetchval("SELECT count(*) FROM contexts")
    watch = await asyncpg.connect(old_database)
    killed = Migration(old_database, tmp_path / "killed")

    async def half_built() -> bool:
        return bool(await watch.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid"))

    await eventually(half_built, "an index is being built", 120)
    killed.process.kill()
    killed.process.wait()
    await watch.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index")
    await transaction.rollback()
    assert await half_built()
    assert await Migration(old_database, tmp_path / "again").ended() == 0
    assert not await half_built()
    await reader.close()
    await watch.close()


@pytest.mark.parametrize("old_database", ["0002"], indirect=True)
async def test_two_migrations_at_once_take_turns(old_database: str, tmp_path: Path) -> None:
    both = [Migration(old_database, tmp_path / str(number)) for number in range(2)]
    for migration in both:
        assert await migration.ended() == 0, migration.output


async def test_the_version_before_goes_on_once_the_schema_has_moved(
    make_settings: Callable[..., Settings], database_url: str
) -> None:
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings):
        assert (await service.client.get("/health/ready")).status_code == 200
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE alembic_version SET version_num = 'of the next version'")
        assert (await service.client.get("/health/ready")).status_code == 200
        assert (await service.run(model="noop", max_tokens=1))["status"] == "completed"
        await connection.execute("UPDATE alembic_version SET version_num = '0003'")
        answer = await service.client.get("/health/ready")
        assert (answer.status_code, "0003" in answer.json()["database"]) == (503, True)
        await connection.close()
    # One that starts only now takes the newer schema too.
    async with running_dispatcher(settings):
        pass


async def test_the_migration_in_the_docs_works(postgres: RunningPostgres, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "migrations.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    versions = tmp_path / "versions"
    versions.mkdir()
    (versions / "9999_example.py").write_text(
        f'import sqlalchemy as sa\nfrom alembic import op\n\nrevision = "9999"\ndown_revision = "{HEAD}"\n{example}'
    )
    ini = (ROOT / "alembic.ini").read_text().replace("%(here)s", str(ROOT))
    locations = f"version_locations = {ROOT / 'migrations' / 'versions'}:{versions}"
    (tmp_path / "alembic.ini").write_text(ini.replace("path_separator = os", f"path_separator = os\n{locations}"))
    admin = await asyncpg.connect(postgres.url)
    await admin.execute("CREATE DATABASE by_the_docs")
    url = with_database(postgres.url, "by_the_docs")
    done = await asyncio.to_thread(alembic, url, "-c", str(tmp_path / "alembic.ini"), "upgrade", "head")
    assert done.returncode == 0, done.stderr
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'results_by_region'::regclass")
    await connection.close()
    await admin.execute("DROP DATABASE by_the_docs WITH (FORCE)")
    await admin.close()
