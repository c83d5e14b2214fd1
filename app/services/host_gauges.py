"""The gauges of rented hosts, read from Postgres when somebody scrapes."""

from __future__ import annotations

from collections import Counter

from app.db.engine import Database
from app.queue.hosts import HostStore
from app.queue.leader import LeaderStore
from app.queue.ledger import SPANS
from app.queue.pools import PoolStore
from app.telemetry.metrics import BUDGET_DOLLARS, HOST_DOLLARS, HOST_DOLLARS_PER_HOUR, HOSTS


class HostGauges:
    def __init__(self, database: Database) -> None:
        self._hosts = HostStore(database)
        self._pools = PoolStore(database)
        self._leaders = LeaderStore(database)
        # Series of states that no host has any more go to 0 rather than away.
        self._states: set[tuple[str, str]] = set()

    async def read(self) -> None:
        """Raises DatabaseUnavailable."""
        states = Counter((host["pool"], host["state"]) for host in await self._hosts.live())
        self._states |= states.keys()
        spent = await self._hosts.spent()
        budgets = {pool["name"]: pool["settings"].get("budget") or {} for pool in await self._pools.list()}
        leader = await self._leaders.read()
        budgets[""] = {} if leader is None else leader["budget"]
        HOSTS.replace({each: float(states[each]) for each in self._states})
        HOST_DOLLARS_PER_HOUR.replace({(pool,): row["rate"] for pool, row in spent.items()})
        HOST_DOLLARS.replace({(pool, span): row[span] for pool, row in spent.items() for span in SPANS})
        BUDGET_DOLLARS.replace(
            {(pool, span): float(most) for pool, budget in budgets.items() for span, most in budget.items() if most}
        )

    def forget(self) -> None:
        """Postgres is away."""
        for gauge in (HOSTS, HOST_DOLLARS_PER_HOUR, HOST_DOLLARS, BUDGET_DOLLARS):
            gauge.replace({})
