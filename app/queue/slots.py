"""All SQL of `server_slots`: how many requests of a model a server has at once, however many dispatchers there are.

Each row is a slot. A claim takes one for each result it claims (statements/claim.py); the dispatcher that has it says
so with every renewal, and gives it back when the run ends, with what was done in it. What a dispatcher that died had is
free when its lease is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.db.engine import Database

MAKE = """
INSERT INTO server_slots (server, model, number)
SELECT g.server, g.model, n - 1
FROM unnest($1::text[], $2::text[], $3::int[]) AS g(server, model, most), generate_series(1, g.most) AS n
ON CONFLICT DO NOTHING
"""

RENEW = """
UPDATE server_slots x SET until = now() + make_interval(secs => $5)
FROM unnest($1::text[], $2::text[], $3::int[], $4::uuid[]) AS g(server, model, number, token)
WHERE x.server = g.server AND x.model = g.model AND x.number = g.number AND x.token = g.token
"""

# A slot that another claim has by now keeps it; what was done in it counts all the same.
END = """
WITH unflushed AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), ended AS (
    SELECT g.server, g.model, g.number, array_agg(g.token) AS tokens, count(*) FILTER (WHERE g.spent) AS attempts,
           sum(g.prompt_tokens) AS prompt_tokens, sum(g.completion_tokens) AS completion_tokens,
           sum(g.gpu_seconds) AS gpu_seconds, sum(g.cost) AS cost,
           max(g.error_code) AS error_code, max(g.error_message) AS error_message
    FROM unnest($1::text[], $2::text[], $3::int[], $4::uuid[], $5::bool[], $6::int[], $7::int[], $8::float8[],
                $9::float8[], $10::text[], $11::text[])
         AS g(server, model, number, token, spent, prompt_tokens, completion_tokens, gpu_seconds, cost, error_code,
              error_message), unflushed
    GROUP BY g.server, g.model, g.number ORDER BY 1, 2, 3
)
UPDATE server_slots x SET
    token = CASE WHEN x.token = ANY (e.tokens) THEN NULL ELSE x.token END,
    until = CASE WHEN x.token = ANY (e.tokens) THEN '-infinity' ELSE x.until END,
    attempts = x.attempts + e.attempts,
    prompt_tokens = x.prompt_tokens + e.prompt_tokens,
    completion_tokens = x.completion_tokens + e.completion_tokens,
    gpu_seconds = x.gpu_seconds + e.gpu_seconds,
    cost = CASE WHEN e.cost IS NULL THEN x.cost ELSE coalesce(x.cost, 0) + e.cost END,
    error_code = coalesce(e.error_code, x.error_code),
    error_message = coalesce(e.error_message, x.error_message),
    error_at = CASE WHEN e.error_code IS NULL THEN x.error_at ELSE now() END
FROM ended e
WHERE x.server = e.server AND x.model = e.model AND x.number = e.number
"""

USED = """
SELECT server, model, count(*) FILTER (WHERE token IS NOT NULL AND until > now()) AS in_flight, sum(attempts)::bigint
       AS attempts, sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
       sum(gpu_seconds) AS gpu_seconds, sum(cost) AS cost,
       (array_agg(error_code ORDER BY error_at DESC NULLS LAST))[1] AS error_code,
       (array_agg(error_message ORDER BY error_at DESC NULLS LAST))[1] AS error_message, max(error_at) AS error_at
FROM server_slots WHERE server = ANY ($1::text[]) GROUP BY server, model ORDER BY server, model
"""


# Of servers that have left for good. What still runs there has its slots until it ends.
FORGET = """
DELETE FROM server_slots x
WHERE x.until <= now() AND NOT EXISTS (SELECT FROM servers s WHERE s.address = x.server)
"""


@dataclass(slots=True)
class Slot:
    """One that a claim has."""

    server: str
    model: str
    number: int
    token: UUID


@dataclass(slots=True)
class Ended:
    """A slot whose run has ended, and what was done in it."""

    slot: Slot
    spent: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    gpu_seconds: float = 0.0
    cost: float | None = None
    error_code: str | None = None
    error_message: str | None = None


class SlotStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self, lanes: Sequence[tuple[str, str, int]]) -> None:
        """Sees to it that (server, model) has so many slots."""
        async with self._database.hot() as connection:
            await connection.execute(MAKE, *_columns(lanes))

    async def renew(self, slots: Sequence[Slot], lease_seconds: float) -> None:
        async with self._database.hot() as connection:
            rows = [(slot.server, slot.model, slot.number, slot.token) for slot in slots]
            await connection.execute(RENEW, *_columns(rows), lease_seconds)

    async def end(self, ended: Sequence[Ended]) -> None:
        rows = [
            (
                each.slot.server,
                each.slot.model,
                each.slot.number,
                each.slot.token,
                each.spent,
                each.prompt_tokens,
                each.completion_tokens,
                each.gpu_seconds,
                each.cost,
                each.error_code,
                each.error_message,
            )
            for each in ended
        ]
        async with self._database.hot() as connection:
            await connection.execute(END, *_columns(rows))

    async def forget(self) -> None:
        """Removes the slots of servers that are no longer listed."""
        async with self._database.hot() as connection:
            await connection.execute(FORGET)

    async def used(self, servers: Sequence[str]) -> Sequence[Any]:
        """What is in flight and what was done, by server and model."""
        async with self._database.hot() as connection:
            rows: Sequence[Any] = await connection.fetch(USED, list(servers))
        return rows


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
