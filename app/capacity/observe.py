"""What the policy is told, read from Postgres: times are seconds since the epoch by its clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any
from uuid import UUID

from app.capacity.forecast import sustained
from app.capacity.plan import Amounts, Deadline, Demand, Failure, Host, Measured, Pool, Spent, State
from app.db.engine import Database
from app.queue.demand import LATELY_SECONDS, RATE_SECONDS, DemandStore, ModelDemand
from app.queue.hosts import HostStore, LeadersHosts, Row

FAILURES_SECONDS = 7 * 86_400.0
MEASURED_DAYS = 14
# Tokens a second of hosts that were hardly ever full say nothing.
LEAST_FULL_SECONDS = 60.0
# Quiet spells are looked for this often.
QUIET_EVERY = 60.0
NOW = "SELECT extract(epoch FROM now())::float8"


@dataclass(frozen=True)
class Situation:
    now: float
    demand: Mapping[str, Demand]
    rows: Sequence[Row]
    hosts: Sequence[Host]
    spent: Spent
    failures: Sequence[Failure]
    measured: Measured


class Observer:
    def __init__(self, database: Database, writes: LeadersHosts) -> None:
        self._database = database
        self._writes = writes
        self._hosts = HostStore(database)
        self._demand = DemandStore(database)
        self._quiet: tuple[float, Mapping[str, Sequence[float]]] = (-inf, {})
        # Ready hosts without a ticket while some wait, since when.
        self._passed_over: dict[UUID, float] = {}

    async def look(self, pools: Sequence[Pool], in_doubt: frozenset[UUID]) -> Situation:
        """Raises DatabaseUnavailable, or NotLeading."""
        running = await self._writes.count_work()
        models = [model for pool in pools for model in pool.models]
        demand = {each.model: _demand(each) for each in await self._demand.read(models)}
        rows = await self._hosts.live()
        spent = await self._hosts.spent()
        failures = await self._hosts.failures(FAILURES_SECONDS)
        measured = await self._hosts.measured(LEAST_FULL_SECONDS, MEASURED_DAYS)
        if time.monotonic() - self._quiet[0] > QUIET_EVERY:
            of_models = {model: pool.name for pool in pools for model in pool.models}
            self._quiet = (time.monotonic(), await self._demand.quiet(of_models))
        async with self._database.hot() as connection:
            now: float = await connection.fetchval(NOW)
        waiting = {pool.name for pool in pools if any(demand[model].waiting for model in pool.models)}
        self._passed_over = {
            row["id"]: self._passed_over.get(row["id"], now)
            for row in rows
            if row["state"] == State.READY and row["pool"] in waiting and not running.get(row["id"])
        }
        return Situation(
            now,
            demand,
            rows,
            [
                host_of(
                    row,
                    running.get(row["id"], 0),
                    in_doubt=row["id"] in in_doubt,
                    passed_over=now - self._passed_over.get(row["id"], now),
                )
                for row in rows
            ],
            _spent(spent),
            [_failure(row) for row in failures],
            _measured(measured, self._quiet[1]),
        )


def host_of(row: Row, running: int = 0, *, in_doubt: bool = False, passed_over: float = 0.0) -> Host:
    return Host(
        id=str(row["id"]),
        pool=row["pool"],
        state=State(row["state"]),
        machine=row["machine"] or "",
        gpu=row["gpu"] or "",
        price=row["hourly_price"],
        created=_epoch(row["created_at"]),
        since=_epoch(row["state_since"]),
        progress=_epoch(row["progress_at"]),
        busy=_epoch(max(filter(None, (row["last_request_at"], row["ready_at"], row["created_at"])))),
        running=running,
        passed_over=passed_over,
        locked=row["locked"],
        in_doubt=in_doubt,
        leaving=row["asked"] is not None,
    )


def _demand(each: ModelDemand) -> Demand:
    return Demand(
        model=each.model,
        waiting=each.waiting,
        tokens=each.waiting * each.tokens,
        oldest=each.oldest,
        running=each.running,
        deadlines=tuple(Deadline(seconds, tickets * each.tokens) for seconds, tickets in each.deadlines),
        arriving=each.arrived * each.tokens / RATE_SECONDS,
        lately=sustained(each.last, each.before) * each.tokens / LATELY_SECONDS,
    )


def _spent(rows: Mapping[str, Row]) -> Spent:
    windows = ("hour", "day", "month", "total")
    pools = {pool: Amounts(**{window: row[window] for window in windows}) for pool, row in rows.items()}
    return Spent(pools, Amounts(**{window: sum(row[window] for row in rows.values()) for window in windows}))


def _failure(row: Row) -> Failure:
    return Failure(row["pool"], row["machine"] or "", _epoch(row["failed_at"]), row["failed_in"], row["failure"])


def _measured(rows: Sequence[Row], quiet: Mapping[str, Sequence[float]]) -> Measured:
    startups: dict[str, list[float]] = {}
    for row in rows:
        startups.setdefault(row["pool"], []).append(row["startup"])
    return Measured(
        {(row["pool"], row["gpu"] or ""): row["tokens_per_second"] for row in rows if row["tokens_per_second"]},
        {pool: sum(each) / len(each) for pool, each in startups.items()},
        quiet,
    )


def _epoch(moment: datetime | Any) -> float:
    seconds: float = moment.timestamp()
    return seconds
