"""What happens now and in the last hour and day, of one owner, or of all for those who may see it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from app.db.engine import Database
from app.db.ids import lowest_at
from app.queue.backlog import read_backlog
from app.queue.batches import BatchStore
from app.queue.minutes import MinuteStore
from app.queue.ticket import CANCELLED
from app.services.callers import Caller, Scope
from app.services.catalog import SET_ASIDE, Catalog, CatalogEntry
from app.services.hosts import CapacityView, Hosts, PoolView, budget_uses
from app.services.lately_read import LatelyRead
from app.services.servers import Servers, ServerView
from app.services.submitted import Submitted, beginning

# Steps of the lines, and how many.
HOUR = (timedelta(minutes=1), 60)
DAY = (timedelta(minutes=15), 96)
# Of a day, an hour's submits are counted at once.
DAY_STEPS_AT_ONCE = 4
# Tickets that could have been claimed for so many seconds while none runs say that no dispatcher is there.
UNCLAIMED_SECONDS = 15.0
# The day of an owner is counted anew after so many seconds; so many are held.
DAY_SECONDS, MOST_DAYS = 30.0, 1000
# Of the last day, the newest that had failures.
BATCHES_SHOWN = 3

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


@dataclass(frozen=True, slots=True)
class ModelNow:
    """Tickets of a model; `oldest` in seconds, of those that wait. `entry` is None for a model nobody ever served.

    `unclaimed` as in a ModelBacklog, 0 where they are of one owner.
    """

    name: str
    waiting: int
    running: int
    oldest: float
    unclaimed: float
    reason: str
    entry: CatalogEntry | None


@dataclass(frozen=True, slots=True)
class Concern:
    """What a person should look at: a model by name, a server or a batch by id, the pool of hosts by name, or the
    dispatchers.
    """

    about: Literal["model", "server", "batch", "pool", "dispatchers"]
    subject: str
    text: str


class Span:
    """What ended, in steps of the same length, the oldest first; the last one is not over yet."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], began: datetime, step: timedelta, steps: int) -> None:
        # What was cancelled on request did not fail.
        self.completed, self.failed, self.cancelled = [0] * steps, [0] * steps, [0] * steps
        # Of answers, by model.
        self.tokens: dict[str, list[int]] = {}
        # What came in, where it was counted; not all of it is known until it was counted back to the beginning.
        self.submitted: list[int] = []
        self.submitted_known = False
        self._steps = [began + place * step for place in range(steps)]
        self._step = step.total_seconds()
        self._last_lasted = (datetime.now(UTC) - began).total_seconds() - self._step * (steps - 1)
        for row in rows:
            place = min((row["began"] - began) // step, steps - 1)
            ended = {"": self.completed, CANCELLED: self.cancelled}.get(row["error_code"], self.failed)
            ended[place] += row["tickets"]
            self.tokens.setdefault(row["model"], [0] * steps)[place] += row["tokens"]

    def take_submitted(self, tickets: Mapping[datetime, int], known: bool) -> None:
        """`tickets` by the beginning of their step; all of them where they are `known`."""
        self.submitted = [tickets.get(began, 0) for began in self._steps]
        self.submitted_known = known

    def a_second(self, values: Sequence[int]) -> list[float]:
        """Of each step; the last one, which may have just begun, is taken together with the one before."""
        lasted = min(max(self._last_lasted, 0.0), self._step)
        return [*(value / self._step for value in values[:-1]), sum(values[-2:]) / (self._step + lasted)]

    @property
    def tickets_a_second(self) -> float:
        return self.a_second(self.completed)[-1] + self.a_second(self.failed)[-1]

    @property
    def submitted_a_second(self) -> float:
        return self.a_second(self.submitted)[-1] if self.submitted else 0.0

    @property
    def tokens_a_second(self) -> float:
        return sum(self.a_second(values)[-1] for values in self.tokens.values())


@dataclass(frozen=True, slots=True)
class Overview:
    models: Sequence[ModelNow]
    servers: Sequence[ServerView]
    hour: Span
    day: Span
    # Those of the last hour, the most frequent first.
    errors: Sequence[tuple[str, int]]
    # Whether it is of all owners.
    of_all: bool
    attention: Sequence[Concern]
    # None for those who may not see the hosts.
    capacity: CapacityView | None

    @property
    def waiting(self) -> int:
        return sum(model.waiting for model in self.models)

    @property
    def running(self) -> int:
        return sum(model.running for model in self.models)

    @property
    def slots(self) -> int:
        """How many tickets the servers that are up could run at once, if all were for their ready models."""
        return sum(
            server.concurrency * sum(model.state == "ready" for model in server.served)
            for server in self.servers
            if server.state == "up"
        )


class Overviews:
    def __init__(self, database: Database, catalog: Catalog, servers: Servers, hosts: Hosts) -> None:
        self._database = database
        self._batches = BatchStore(database)
        self._minutes = MinuteStore(database)
        self._pending = LatelyRead(self._read_pending)
        self._submitted_in_hour = Submitted(self._minutes, *HOUR, HOUR[1])
        self._submitted_in_day = Submitted(self._minutes, *DAY, DAY_STEPS_AT_ONCE)
        self._days: dict[int | None, tuple[float, Span]] = {}
        self._catalog = catalog
        self._servers = servers
        self._hosts = hosts

    async def _read_pending(self, whose: int | None) -> dict[str, tuple[int, int, float, float]]:
        """How many wait and run of each model, the seconds that the oldest waits, and for how many one is unclaimed."""
        if whose is None:
            return {
                each.model: (each.queued + each.backing_off, each.running, each.oldest, each.unclaimed)
                for each in (await read_backlog(self._database)).models
            }
        async with self._database.hot() as connection:
            rows = await connection.fetch(PENDING, whose)
        return {row["model"]: (row["waiting"], row["running"], row["oldest"], 0.0) for row in rows}

    async def look(self, caller: Caller) -> Overview:
        of_all = Scope.ADMIN in caller.scopes
        whose = None if of_all else caller.owner_id
        pending = await self._pending.get(whose)
        began, recent = await self._ended(*HOUR, whose)
        served = {entry.name: entry for entry in await self._catalog.models() if caller.sees(entry.name)}
        models = [
            ModelNow(
                name,
                *pending.get(name, (0, 0, 0.0, 0.0)),
                self._catalog.waiting_reason(name),
                served.get(name),
            )
            for name in sorted({*served, *pending})
        ]
        servers = await self._servers.list()
        day = lowest_at(datetime.now(UTC) - timedelta(days=1))
        batches = await self._batches.with_failures(caller.owner_id, day, BATCHES_SHOWN)
        capacity = await self._hosts.capacity() if of_all else None
        concerns = [*_of_models(models), *map(_of_batch, batches)]
        if capacity is not None:
            concerns = [*_of_dispatchers(models), *_of_servers(servers), *_of_pools(capacity), *concerns]
        hour, day_span = Span(recent, began, *HOUR), await self._day(whose)
        hour.take_submitted(*await self._submitted_in_hour.get(whose))
        day_span.take_submitted(*await self._submitted_in_day.get(whose))
        return Overview(models, servers, hour, day_span, _errors(recent), of_all, concerns, capacity)

    async def _ended(
        self, step: timedelta, steps: int, owner_id: int | None
    ) -> tuple[datetime, Sequence[Mapping[str, Any]]]:
        """The beginning of the first step, and what ended since; the last step is the one that is now."""
        began = beginning(step, steps)
        return began, await self._minutes.ended(began, step, owner_id)

    async def _day(self, owner_id: int | None) -> Span:
        until, span = self._days.get(owner_id, (0.0, None))
        if span is None or until < time.monotonic():
            began, rows = await self._ended(*DAY, owner_id)
            span = Span(rows, began, *DAY)
            if len(self._days) >= MOST_DAYS:
                self._days.clear()
            self._days[owner_id] = (time.monotonic() + DAY_SECONDS, span)
        return span


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """The most frequent first."""
    counts: dict[str, int] = {}
    for row in rows:
        if row["error_code"] not in ("", CANCELLED):
            counts[row["error_code"]] = counts.get(row["error_code"], 0) + row["tickets"]
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def _of_models(models: Sequence[ModelNow]) -> Iterator[Concern]:
    for model in models:
        why = "" if model.entry is None else model.entry.reason
        if model.waiting and model.reason in ("no_server", "model_down"):
            tickets = "1 ticket waits" if model.waiting == 1 else f"{model.waiting:,} tickets wait"
            yield Concern("model", model.name, f"{tickets} for {model.name}, which no server has ready{_because(why)}")
        elif model.entry is not None and model.entry.state == SET_ASIDE:
            yield Concern("model", model.name, f"{model.name} is down{_because(why)}")


def _of_dispatchers(models: Sequence[ModelNow]) -> Iterator[Concern]:
    """What servers could run and nobody takes; a dispatcher that runs something is there."""
    idle = [model for model in models if model.reason == "queued" and model.unclaimed >= UNCLAIMED_SECONDS]
    if idle and not any(model.running for model in models):
        waiting = sum(model.waiting for model in idle)
        tickets = "1 ticket waits" if waiting == 1 else f"{waiting:,} tickets wait"
        text = f"{tickets} for models that are ready, and none runs: no dispatcher takes them. Is one running?"
        yield Concern("dispatchers", "", text)


def _of_servers(servers: Sequence[ServerView]) -> Iterator[Concern]:
    for server in servers:
        if server.state == "down":
            yield Concern("server", str(server.id), f"Server {server.name} is down{_because(server.reason or '')}")


def _of_batch(row: Mapping[str, Any]) -> Concern:
    name = row["filename"] or f"batch_{row['id'].hex}"
    if row["status"] == "failed":
        return Concern("batch", str(row["id"]), f"Batch {name} was refused: no line of it was run.")
    return Concern("batch", str(row["id"]), f"{row['failed']:,} of {row['total']:,} requests of batch {name} failed.")


def _of_pools(capacity: CapacityView) -> Iterator[Concern]:
    leads = capacity.leader is not None and capacity.leader.leads
    for pool in capacity.pools:
        if pool.hosts and not leads:
            text = f"Hosts of {pool.name} run and cost, and no controller decides about them."
            yield Concern("pool", pool.name, text)
        yield from _of_budget(pool.name, f"{pool.name} has", pool)
    yield from _of_budget("", "All pools together have", capacity)


def _of_budget(key: str, whose: str, of: PoolView | CapacityView) -> Iterator[Concern]:
    for use in budget_uses(of):
        if use.near:
            span = "in all" if use.window == "total" else f"of this {use.window}"
            yield Concern("pool", key, f"{whose} spent ${use.spent:,.2f} of the ${use.limit:,.2f} {span}.")


def _because(reason: str) -> str:
    return f": {reason}" if reason else "."
