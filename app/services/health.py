"""Whether this process can do its work."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from app.config import Settings
from app.db.connect import Connector
from app.db.engine import HOT_SETTINGS, Database, open_database
from app.db.faults import DatabaseFault, diagnose, is_unavailable
from app.errors import DatabaseUnavailable
from app.telemetry import logger

log = logger("health")

LOOK_AGAIN_SECONDS = 1.0
MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def revisions() -> tuple[str, frozenset[str]]:
    """The revision the code was written for, and all it knows of.

    Read from the names of the files, which begin with the revision and count up: alembic itself would take a third of
    a second of every start.
    """
    known = sorted(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))
    return known[-1], frozenset(known)


@dataclass(frozen=True, slots=True)
class DatabaseHealth:
    """`lasting`: no waiting mends what `detail` says."""

    reachable: bool
    migrated: bool
    detail: str
    lasting: bool = False


class Health:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest, self._known = revisions()

    async def database(self) -> DatabaseHealth:
        try:
            async with self._database.hot() as connection:
                revision: Any = await connection.fetchval("SELECT version_num FROM alembic_version")
        except asyncpg.UndefinedTableError:
            return DatabaseHealth(True, False, "The database is empty; apply the migrations with `make migrate`.")
        except (DatabaseUnavailable, asyncpg.PostgresError) as error:
            diagnosis = diagnose(error.__cause__ or error)
            return DatabaseHealth(False, False, diagnosis.sentence, diagnosis.lasting)
        # One it does not know is newer: during a deploy the old processes go on.
        if revision != self._newest and revision in self._known:
            return DatabaseHealth(
                True,
                False,
                f"The database is at revision {revision}, the code expects {self._newest}; run `make migrate`.",
            )
        return DatabaseHealth(True, True, "")


async def migrated(health: Health, stop: asyncio.Event) -> bool:
    """Waits until the database is there and migrated; False when asked to stop before.

    Raises:
        DatabaseFault: no waiting mends what keeps this process from using it.
    """
    said = ""
    while not stop.is_set():
        state = await health.database()
        if state.migrated:
            return True
        if state.lasting:
            raise DatabaseFault(state.detail)
        if state.detail != said:
            said = state.detail
            log.warning("waiting for the database", reason=said)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                await stop.wait()
    return False


async def require_database(settings: Settings) -> None:
    """Looks once; a Postgres that is away, or has no tables yet, may come.

    Raises:
        DatabaseFault: no waiting mends what keeps this process from using it.
    """
    if not settings.pooled:
        await _require_sessions(settings)
    async with open_database(settings) as database:
        state = await Health(database).database()
        if state.lasting:
            raise DatabaseFault(state.detail)
    if settings.pooled:
        await _require_listening(settings)


async def _require_sessions(settings: Settings) -> None:
    try:
        keeps = await Connector(settings.database_arguments, HOT_SETTINGS).keeps_sessions()
    except Exception as error:
        if not is_unavailable(error):
            raise
        return
    if not keeps:
        raise DatabaseFault(
            "DATABASE_URL leads to a pooler in transaction mode: set DATABASE_LISTEN_URL to the URL of Postgres "
            "itself, for the connection that listens."
        )


async def _require_listening(settings: Settings) -> None:
    try:
        connection = await Connector(settings.listen_arguments).open()
    except Exception as error:
        if not is_unavailable(error):
            raise
        diagnosis = diagnose(error)
        if diagnosis.lasting:
            sentence = diagnosis.sentence.replace("DATABASE_URL", "DATABASE_LISTEN_URL")
            raise DatabaseFault(sentence) from error
    else:
        connection.terminate()
