"""What happens now and in the last hour, of one owner, or of all for those who may see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from app.db.engine import Database
from app.db.ids import lowest_at
from app.queue.backlog import read_backlog
from app.services.callers import Caller, Scope
from app.services.catalog import Catalog, CatalogEntry
from app.services.servers import Servers, ServerView

MINUTES = 60
# Of the tickets of the last hour, so many of the newest are looked at.
MOST_LOOKED_AT = 20_000

# Of one owner; the index of pending rows by model serves the sums of all.
PENDING = """
SELECT model,
       count(*) FILTER (WHERE attempt_token IS NOT NULL AND available_at > now()) AS running,
       count(*) FILTER (WHERE attempt_token IS NULL OR available_at <= now()) AS waiting,
       coalesce(extract(epoch FROM now() - min(created_at) FILTER (
           WHERE attempt_token IS NULL OR available_at <= now()
       )), 0)::float8 AS oldest
FROM results WHERE owner_id = $1 AND status = 'pending' GROUP BY model
"""
RECENT = """
SELECT floor(extract(epoch FROM now() - completed_at) / 60)::int AS minute, status, error_code, count(*) AS tickets,
       coalesce(sum(completion_tokens), 0)::bigint AS tokens
FROM (
    SELECT completed_at, status, error_code, completion_tokens FROM results
    WHERE owner_id = $1 AND id >= $2 ORDER BY id DESC LIMIT $3
) newest
WHERE status <> 'pending' AND completed_at > now() - interval '60 minutes'
GROUP BY 1, 2, 3
"""


@dataclass(frozen=True, slots=True)
class ModelNow:
    """Tickets of a model; `oldest` in seconds, of those that wait. `entry` is None for a model nobody ever served."""

    name: str
    waiting: int
    running: int
    oldest: float
    reason: str
    entry: CatalogEntry | None


@dataclass(frozen=True, slots=True)
class Overview:
    """`completed`, `failed` and `tokens` are of each of the last 60 minutes, the oldest first."""

    models: Sequence[ModelNow]
    servers: Sequence[ServerView]
    completed: Sequence[int]
    failed: Sequence[int]
    tokens: Sequence[int]
    errors: Sequence[tuple[str, int]]
    # Whether the counts of what waits and runs are of all owners.
    of_all: bool
    attention: Sequence[str] = field(default=())

    @property
    def waiting(self) -> int:
        return sum(model.waiting for model in self.models)

    @property
    def running(self) -> int:
        return sum(model.running for model in self.models)


class Overviews:
    def __init__(self, database: Database, catalog: Catalog, servers: Servers) -> None:
        self._database = database
        self._catalog = catalog
        self._servers = servers

    async def look(self, caller: Caller) -> Overview:
        of_all = Scope.ADMIN in caller.scopes
        since = lowest_at(datetime.now(UTC) - timedelta(minutes=MINUTES))
        if of_all:
            backlog = await read_backlog(self._database)
            pending = {
                each.model: (each.queued + each.backing_off, each.running, each.oldest) for each in backlog.models
            }
        async with self._database.hot() as connection:
            if not of_all:
                rows = await connection.fetch(PENDING, caller.owner_id)
                pending = {row["model"]: (row["waiting"], row["running"], row["oldest"]) for row in rows}
            recent = await connection.fetch(RECENT, caller.owner_id, since, MOST_LOOKED_AT)
        served = {entry.name: entry for entry in await self._catalog.models() if caller.sees(entry.name)}
        models = [
            ModelNow(
                name,
                *pending.get(name, (0, 0, 0.0)),
                self._catalog.waiting_reason(name),
                served.get(name),
            )
            for name in sorted({*served, *pending})
        ]
        servers = await self._servers.list()
        completed, failed, tokens = _by_minute(recent)
        return Overview(
            models, servers, completed, failed, tokens, _errors(recent), of_all, _attention(models, servers)
        )


def _by_minute(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int], list[int]]:
    completed, failed, tokens = [0] * MINUTES, [0] * MINUTES, [0] * MINUTES
    for row in rows:
        place = MINUTES - 1 - min(max(row["minute"], 0), MINUTES - 1)
        (completed if row["status"] == "completed" else failed)[place] += row["tickets"]
        tokens[place] += row["tokens"]
    return completed, failed, tokens


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """The most frequent first."""
    counts: dict[str, int] = {}
    for row in rows:
        if row["error_code"] is not None:
            counts[row["error_code"]] = counts.get(row["error_code"], 0) + row["tickets"]
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def _attention(models: Sequence[ModelNow], servers: Sequence[ServerView]) -> list[str]:
    """What a person should look at, in sentences."""
    said = [
        f"{model.waiting:,} tickets wait for {model.name}, which no server has ready"
        f"{': ' + model.entry.reason if model.entry is not None and model.entry.reason else '.'}"
        for model in models
        if model.waiting and model.reason in ("no_server", "model_down")
    ]
    said += [f"Server {server.name} is down: {server.reason}" for server in servers if server.state == "down"]
    return said
