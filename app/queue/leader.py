"""The lease of the one process that decides about hosts. Its writes name its token: a stale one changes nothing."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from app.db.engine import Database

TAKE = """
INSERT INTO capacity_leader AS l (id, service, holder, token, until)
VALUES (1, $1, $2, 1, now() + make_interval(secs => $3))
ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, token = l.token + 1, until = excluded.until
WHERE l.until <= now()
RETURNING service, token
"""
RENEW = """
UPDATE capacity_leader SET until = now() + make_interval(secs => $2) WHERE token = $1 AND until > now() RETURNING true
"""
GIVE_BACK = "UPDATE capacity_leader SET until = now() WHERE token = $1"
# Shared, so that a successor waits for the end of a transaction that has begun.
FENCE = "SELECT true FROM capacity_leader WHERE token = $1 AND until > now() FOR SHARE"
READ = "SELECT holder, until, until > now() AS leads, budget FROM capacity_leader"


class NotLeading(Exception):
    """The lease is over or somebody else's: nothing was written."""


@dataclass(frozen=True, slots=True)
class Leadership:
    """`service` is the same for all leaders of one database."""

    service: str
    token: int


class LeaderStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, holder: str, lease_seconds: float) -> Leadership | None:
        """The lease, unless another process has it."""
        async with self._database.hot() as connection:
            row = await connection.fetchrow(TAKE, secrets.token_hex(4), holder, lease_seconds)
        return None if row is None else Leadership(row["service"], row["token"])

    async def renew(self, token: int, lease_seconds: float) -> bool:
        """False where the lease is over."""
        async with self._database.hot() as connection:
            return bool(await connection.fetchval(RENEW, token, lease_seconds))

    async def give_back(self, token: int) -> None:
        async with self._database.hot() as connection:
            await connection.execute(GIVE_BACK, token)

    async def read(self) -> Any:
        """`holder`, `until`, whether it `leads`, and the `budget` over all pools; None where there never was one."""
        async with self._database.hot() as connection:
            return await connection.fetchrow(READ)


@asynccontextmanager
async def fenced(database: Database, token: int) -> AsyncIterator[Any]:
    """A transaction of the leader.

    Raises:
        NotLeading: the token is stale.
    """
    async with database.transaction() as connection:
        if not await connection.fetchval(FENCE, token):
            raise NotLeading
        yield connection
