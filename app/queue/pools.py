"""All SQL of `pools`: what the leader reads in its definitions and decides, for the other processes to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.db.engine import Database
from app.queue.leader import fenced

LIST = "SELECT *, now() AS now FROM pools ORDER BY name"
PUT = """
INSERT INTO pools AS p (name, models, settings)
SELECT name, ARRAY(SELECT jsonb_array_elements_text(models)), settings
FROM jsonb_to_recordset($1::jsonb) AS g(name text, models jsonb, settings jsonb)
ON CONFLICT (name) DO UPDATE SET models = excluded.models, settings = excluded.settings, seen_at = now()
"""
BUDGET = "UPDATE capacity_leader SET budget = $1 WHERE budget IS DISTINCT FROM $1"
REMOVE_OTHERS = "DELETE FROM pools WHERE name <> ALL ($1::text[])"
PLANNED = """
UPDATE pools p SET plan = g.plan, seen_at = now()
FROM jsonb_to_recordset($1::jsonb) AS g(name text, plan jsonb) WHERE p.name = g.name
"""


class PoolStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self) -> Sequence[Mapping[str, Any]]:
        async with self._database.hot() as connection:
            rows: Sequence[Mapping[str, Any]] = await connection.fetch(LIST)
        return rows


class LeadersPools:
    """What the leader writes; every method raises NotLeading once the token is stale."""

    def __init__(self, database: Database, token: int) -> None:
        self._database = database
        self._token = token

    async def put(self, pools: Sequence[Mapping[str, Any]], budget: Mapping[str, Any]) -> None:
        """The pools there are now, each with `name`, `models` and `settings`, and the budget over all of them."""
        async with fenced(self._database, self._token) as connection:
            await connection.execute(PUT, list(pools))
            await connection.execute(REMOVE_OTHERS, [pool["name"] for pool in pools])
            await connection.execute(BUDGET, dict(budget))

    async def planned(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """What was decided for each pool by name."""
        async with fenced(self._database, self._token) as connection:
            await connection.execute(PLANNED, [{"name": name, "plan": plan} for name, plan in plans.items()])
