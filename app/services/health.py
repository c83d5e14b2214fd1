"""Whether this process can do its work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.db.engine import Database
from app.errors import DatabaseUnavailable

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def revisions() -> tuple[str | None, frozenset[str]]:
    """The revision the code was written for, and all it knows of."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    return scripts.get_current_head(), frozenset(script.revision for script in scripts.walk_revisions())


@dataclass(frozen=True, slots=True)
class DatabaseHealth:
    reachable: bool
    migrated: bool
    detail: str


class Health:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest, self._known = revisions()

    async def database(self) -> DatabaseHealth:
        try:
            async with self._database.hot() as connection:
                revision: Any = await connection.fetchval("SELECT version_num FROM alembic_version")
        except DatabaseUnavailable:
            return DatabaseHealth(False, False, "Postgres cannot be reached; check DATABASE_URL and that it runs.")
        except asyncpg.UndefinedTableError:
            return DatabaseHealth(True, False, "The database is empty; apply the migrations with `make migrate`.")
        # One it does not know is newer: during a deploy the old processes go on.
        if revision != self._newest and revision in self._known:
            return DatabaseHealth(
                True,
                False,
                f"The database is at revision {revision}, the code expects {self._newest}; run `make migrate`.",
            )
        return DatabaseHealth(True, True, "")
