"""All SQL of `ordered_models`: models that an admin had a server load, which a restart of the server unloads."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from app.db.engine import Database

# A server that was asked may take so long until it says that it loads.
ASKED_SECONDS = 15.0

KEEP = """
INSERT INTO ordered_models (server_id, model) VALUES ($1, $2)
ON CONFLICT (server_id, model) DO UPDATE SET asked_at = now()
"""
FORGET = "DELETE FROM ordered_models WHERE server_id = $1 AND model = $2"
READ = "SELECT server_id, model FROM ordered_models"
CLAIM = f"""
UPDATE ordered_models SET asked_at = now()
WHERE server_id = $1 AND model = $2 AND asked_at < now() - make_interval(secs => {ASKED_SECONDS}) RETURNING true
"""  # noqa: S608


class OrderedModels:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, connection: Any, server_id: UUID, model: str, *, loaded: bool) -> None:
        """Whether it is to be loaded after each start of the server, in the transaction of `connection`."""
        await connection.execute(KEEP if loaded else FORGET, server_id, model)

    async def forget(self, server_id: UUID, model: str) -> None:
        async with self._database.hot() as connection:
            await connection.execute(FORGET, server_id, model)

    async def read(self) -> list[tuple[UUID, str]]:
        """Servers with their models."""
        async with self._database.hot() as connection:
            return [(row["server_id"], row["model"]) for row in await connection.fetch(READ)]

    async def claim(self, server_id: UUID, model: str) -> bool:
        """Whether it is the caller who asks the server; nobody else does for a while."""
        async with self._database.hot() as connection:
            return bool(await connection.fetchval(CLAIM, server_id, model))
