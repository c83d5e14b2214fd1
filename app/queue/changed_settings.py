"""All SQL of the settings that admins have changed; every process reads them when it is told, and now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.db.engine import Database
from app.queue.audit import Actor

SETTINGS_CHANNEL = "settings_changed"

READ = """
SELECT s.*, k.name AS actor_key_name FROM changed_settings s LEFT JOIN api_keys k ON k.id = s.actor_key_id
ORDER BY s.name
"""
WRITE = """
INSERT INTO changed_settings (name, value, actor_key_id, actor) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
SET (value, changed_at, actor_key_id, actor) = ROW(excluded.value, now(), excluded.actor_key_id, excluded.actor)
"""
REMOVE = "DELETE FROM changed_settings WHERE name = $1 RETURNING name"
TELL = f"SELECT pg_notify('{SETTINGS_CHANNEL}', '')"

Row = Mapping[str, Any]


class ChangedSettingStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self) -> Sequence[Row]:
        async with self._database.hot() as connection:
            rows: Sequence[Row] = await connection.fetch(READ)
        return rows

    async def write(self, connection: Any, name: str, value: str, actor: Actor) -> None:
        """Has the value count from now on, in the transaction of `connection`."""
        await connection.execute(WRITE, name, value, actor.key_id, actor.name)
        await connection.execute(TELL)

    async def remove(self, connection: Any, name: str) -> bool:
        """Has the environment's value count again, in the transaction of `connection`; False where it did."""
        removed = await connection.fetchval(REMOVE, name) is not None
        await connection.execute(TELL)
        return removed
