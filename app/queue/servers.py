"""All SQL of the table `servers`.

A row of the origin `environment` or `file` is a copy of what some process reads there: it counts while a process says
so again and again, and for that process. A row of the origin `api` counts for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.db.engine import Database

SERVERS_CHANNEL = "servers_changed"
# A copy is written again after this, and is taken for gone when no process has written it for the longer time.
SAY_AGAIN_SECONDS = 4.0
FRESH_SECONDS = 15.0
KEPT_DAYS = 1

# What a line of the environment or the file says of a server.
FIELDS = (
    "name",
    "kind",
    "address",
    "models",
    "concurrency",
    "hourly_price",
    "prompt_token_price",
    "completion_token_price",
    "timeouts",
    "credential",
)
_TYPES = {
    "models": "jsonb",
    "timeouts": "jsonb",
    "concurrency": "int",
    "hourly_price": "float8",
    "prompt_token_price": "float8",
    "completion_token_price": "float8",
}
_GIVEN = ", ".join(f"{name} {_TYPES.get(name, 'text')}" for name in FIELDS)
_NAMES = ", ".join(FIELDS)
CHANGEABLE = (*FIELDS, "wanted")
_CHANGED = f"SELECT pg_notify('{SERVERS_CHANNEL}', '')"

_LISTED = f"(origin = 'api' OR seen_at > now() - make_interval(secs => {FRESH_SECONDS}))"
LIST = f"""
SELECT *, seen_at < now() - make_interval(secs => {SAY_AGAIN_SECONDS}) AS outdated
FROM servers WHERE {_LISTED} ORDER BY id
"""
READ = f"SELECT * FROM servers WHERE {_LISTED} AND (id = $1 OR name = $2)"

# A name that another address has gives way to the address.
IMPORT = f"""
WITH given AS (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g({_GIVEN}, origin text) ORDER BY address
), written AS (
    INSERT INTO servers AS s ({_NAMES}, origin)
    SELECT {
    ", ".join(
        "g." + name
        if name != "name"
        else '''
        CASE WHEN EXISTS (SELECT FROM servers o WHERE o.name = g.name AND o.address <> g.address) THEN g.address
             ELSE g.name END'''
        for name in FIELDS
    )
}, origin
    FROM given g
    ON CONFLICT (address) DO UPDATE
    SET ({_NAMES}, origin, seen_at) = ROW({", ".join("excluded." + name for name in FIELDS)}, excluded.origin, now())
    WHERE s.origin <> 'api' AND (
        s.seen_at < now() - make_interval(secs => {SAY_AGAIN_SECONDS})
        OR ({", ".join("s." + name for name in FIELDS)}, s.origin)
           IS DISTINCT FROM ({", ".join("excluded." + name for name in FIELDS)}, excluded.origin)
    )
)
SELECT 1
"""
FORGET = "DELETE FROM servers WHERE origin <> 'api' AND seen_at < now() - make_interval(days => $1)"

ADD = f"""
WITH added AS (
    INSERT INTO servers AS s ({_NAMES}, wanted)
    SELECT {", ".join("g." + name for name in FIELDS)}, g.wanted
    FROM jsonb_to_record($1::jsonb) AS g({_GIVEN}, wanted text)
    -- A copy that no process reads any longer is no server.
    ON CONFLICT (address) DO UPDATE
    SET (id, {_NAMES}, wanted, origin, seen_at, created_at, updated_at)
        = ROW(uuidv7(), {", ".join("excluded." + name for name in FIELDS)}, excluded.wanted, 'api', now(), now(), now())
    WHERE s.origin <> 'api' AND s.seen_at < now() - make_interval(secs => {FRESH_SECONDS})
    RETURNING *
), told AS (
    {_CHANGED} WHERE EXISTS (SELECT FROM added)
)
SELECT added.*, (SELECT count(*) FROM told) FROM added
"""

CHANGE = f"""
WITH changed AS (
    UPDATE servers s
    SET ({_NAMES}, wanted, updated_at) = ROW({", ".join("g." + name for name in FIELDS)}, g.wanted, now())
    FROM jsonb_to_record($2::jsonb) AS g({_GIVEN}, wanted text)
    WHERE s.id = $1
    RETURNING s.*
), told AS (
    {_CHANGED} WHERE EXISTS (SELECT FROM changed)
)
SELECT changed.*, (SELECT count(*) FROM told) FROM changed
"""

REMOVE = f"""
WITH removed AS (
    DELETE FROM servers WHERE id = $1 RETURNING address
), counted_anew AS (
    -- Should it come back, it begins at nothing.
    UPDATE server_slots SET attempts = 0, prompt_tokens = 0, completion_tokens = 0, gpu_seconds = 0, cost = NULL,
                            error_code = NULL, error_message = NULL, error_at = NULL
    WHERE server = (SELECT address FROM removed)
), told AS (
    {_CHANGED} WHERE EXISTS (SELECT FROM removed)
)
SELECT address, (SELECT count(*) FROM told) FROM removed
"""

BELONGS = "UPDATE servers SET host_id = $2 WHERE id = $1"

Row = Mapping[str, Any]


class ServerStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self) -> Sequence[Row]:
        """All servers, oldest first; a copy that is `outdated` is to be written again."""
        async with self._database.hot() as connection:
            rows: Sequence[Row] = await connection.fetch(LIST)
        return rows

    async def find(self, id_: UUID | None, name: str | None = None) -> Row | None:
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(READ, id_, name)
        return row

    async def write_copies(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Says that this process reads these servers in its environment or file; each has FIELDS and `origin`."""
        async with self._database.hot() as connection:
            await connection.execute(IMPORT, list(lines))

    async def forget(self) -> None:
        """Removes copies that no process has written for a day."""
        async with self._database.hot() as connection:
            await connection.execute(FORGET, KEPT_DAYS)

    async def add(self, connection: Any, fields: Mapping[str, Any]) -> Row | None:
        """The new row, in the transaction of `connection`; None where the address is taken.

        Raises:
            asyncpg.UniqueViolationError: the name is taken.
        """
        row: Row | None = await connection.fetchrow(ADD, dict(fields))
        return row

    async def change(self, connection: Any, id_: UUID, fields: Mapping[str, Any]) -> Row | None:
        """The row with all of CHANGEABLE set anew, in the transaction of `connection`; None where there is none.

        Raises:
            asyncpg.UniqueViolationError: the name or the address is taken.
        """
        row: Row | None = await connection.fetchrow(CHANGE, id_, dict(fields))
        return row

    async def belongs(self, connection: Any, id_: UUID, host_id: UUID) -> None:
        """Behind the server is this rented host."""
        await connection.execute(BELONGS, id_, host_id)

    async def look_again(self) -> None:
        """Has every process ask the servers for their state now."""
        async with self._database.hot() as connection:
            await connection.execute(_CHANGED)

    async def remove(self, connection: Any, id_: UUID) -> str | None:
        """The address of the row that is gone, in the transaction of `connection`; None where there is none."""
        address: str | None = await connection.fetchval(REMOVE, id_)
        return address
