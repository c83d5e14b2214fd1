"""Says that a budget is half, nearly or wholly spent, once each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from app.capacity.budget import DRAINING, ENDING, Window, windows
from app.capacity.plan import Amounts, Budget, Host, Pool, Spent
from app.db.engine import Database
from app.queue.budget_alerts import Alert, BudgetAlerts
from app.telemetry import logger

log = logger("capacity")

# Percent. The last is reached as soon as hosts are drained for the budget, which is before all of it is spent.
HALF, NEARLY, WHOLLY = 50, 80, 100
PERIODS = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m", "total": "all"}


class Alerts:
    """Webhooks go to `url`, where there is one."""

    def __init__(self, database: Database, token: int, url: str | None) -> None:
        self._store = BudgetAlerts(database, token)
        self._url = url
        self._told: set[tuple[str, str, str, int, float]] = set()

    async def tell(
        self, now: float, pools: Sequence[Pool], budget: Budget, spent: Spent, hosts: Sequence[Host]
    ) -> None:
        """Raises DatabaseUnavailable, or NotLeading."""
        reached = {_key(alert): alert for alert in alerts_of(now, pools, budget, spent, hosts)}
        if not reached.keys() - self._told:
            return
        for alert in await self._store.tell(list(reached.values()), self._url):
            log.warning(
                "hosts are drained: the rest of a budget is kept for their end"
                if alert.level == WHOLLY
                else "part of a budget is spent",
                pool=alert.pool or "all",
                percent=alert.level,
                span=alert.span,
                period=alert.period,
                limit=alert.most,
                spent=round(alert.spent, 4),
            )
        self._told |= reached.keys()


def alerts_of(
    now: float, pools: Sequence[Pool], budget: Budget, spent: Spent, hosts: Sequence[Host]
) -> Iterator[Alert]:
    """All levels that are reached now."""
    scopes = [("", budget, spent.all)]
    scopes += [(pool.name, pool.budget, spent.pools.get(pool.name, Amounts())) for pool in pools]
    for name, limits, amounts in scopes:
        hourly = sum(host.price for host in hosts if not host.ended and name in ("", host.pool))
        for window in windows(now, limits, amounts):
            period = datetime.fromtimestamp(now, UTC).strftime(PERIODS[window.name])
            for level in _levels(window, hourly):
                yield Alert(name, window.name, period, level, window.limit, window.spent)


def _levels(window: Window, hourly: float) -> Iterator[int]:
    wholly = window.spent >= window.limit or window.reached(hourly, ENDING + DRAINING)
    for level in (HALF, NEARLY, WHOLLY):
        if wholly or (level < WHOLLY and window.spent >= window.limit * level / 100):
            yield level


def _key(alert: Alert) -> tuple[str, str, str, int, float]:
    return alert.pool, alert.span, alert.period, alert.level, alert.most
