"""The budget holds: what is spent, what ending every host will still cost, and what a new one would."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import inf

from app.capacity.plan import Amounts, Budget, Host, Pool, Spent

# Seconds that a host may go on billing after it is to be destroyed: until the next check, and while its provider does
# not answer.
ENDING = 60.0 + 600.0
# Seconds before that, in which tickets may finish.
DRAINING = 300.0
# Seconds that a new host must be able to work for, else its loading is not worth its price.
WORKING = 300.0

HOUR = 3600.0
CENT = 0.01


@dataclass(frozen=True)
class Window:
    """A limit, how much of it is spent, and for how many seconds it runs yet."""

    name: str
    limit: float
    spent: float
    left: float

    def keeps(self, hourly: float, seconds: float) -> float:
        """Dollars that hosts at `hourly` dollars cost in this window within so many seconds."""
        return hourly * min(seconds, self.left) / HOUR

    def reached(self, hourly: float, seconds: float) -> bool:
        """Whether hosts that go on for so many seconds would spend more."""
        return hourly > 0 and self.spent + self.keeps(hourly, seconds) > self.limit + CENT / 100

    def allows(self, running: float, price: float, seconds: float) -> bool:
        """Whether a host at `price`, that lives for `seconds` and is then ended, fits in beside those that run."""
        end = ENDING + DRAINING
        needed = self.keeps(running, end) + self.keeps(price, seconds + end)
        # The next window begins with nothing spent, and has to last until all of them are ended. An hour's limit is one
        # on hosts at once too: otherwise all would be destroyed in the middle of every hour.
        hosts = (running + price) * (1 if self.name == "hour" else end / HOUR)
        return self.spent + needed <= self.limit and hosts <= self.limit


def windows(now: float, budget: Budget, spent: Amounts) -> list[Window]:
    """Those that are limited. Hours, days and months are those of UTC."""
    at = datetime.fromtimestamp(now, UTC)
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    ends = {
        "hour": at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1),
        "day": day + timedelta(days=1),
        "month": (day.replace(day=1) + timedelta(days=32)).replace(day=1),
    }
    return [
        Window(name, limit, getattr(spent, name), ends[name].timestamp() - now if name in ends else inf)
        for name in ("hour", "day", "month", "total")
        if (limit := getattr(budget, name)) is not None
    ]


@dataclass(frozen=True)
class Scope:
    """One pool, or all of them where `pool` is empty: its limits, and dollars an hour of its hosts."""

    pool: str
    windows: tuple[Window, ...]
    hourly: float

    def covers(self, pool: str) -> bool:
        return self.pool in ("", pool)

    def sentence(self, window: Window) -> str:
        whose = f"of pool {self.pool}" if self.pool else "over all pools"
        span = "in all" if window.name == "total" else f"this {window.name}"
        return f"the budget {whose} is ${window.limit:.2f} {span}, of which ${window.spent:.2f} is spent"


class Purse:
    """What may still be spent; a rent is taken off before the next one is considered."""

    def __init__(self, now: float, pools: Iterable[Pool], budget: Budget, spent: Spent, hosts: Sequence[Host]) -> None:
        billing = [host for host in hosts if not host.ended]
        self._scopes = [
            Scope(
                pool.name,
                tuple(windows(now, pool.budget, spent.pools.get(pool.name, Amounts()))),
                sum(host.price for host in billing if host.pool == pool.name),
            )
            for pool in pools
        ]
        everything = tuple(windows(now, budget, spent.all))
        self._scopes.append(Scope("", everything, sum(host.price for host in billing)))

    def drained(self, pool: str) -> str:
        """Why its hosts have to be drained now; empty where they need not."""
        return self._reached(pool, ENDING + DRAINING)

    def ended(self, pool: str) -> str:
        """Why they have to be destroyed now, whatever they do."""
        return self._reached(pool, ENDING)

    def refuses(self, pool: str, price: float, startup: float) -> str:
        """Why a host at that price may not be rented; empty where it may."""
        for scope in self._scopes:
            for window in scope.windows if scope.covers(pool) else ():
                if not window.allows(scope.hourly, price, startup + WORKING):
                    return (
                        f"{scope.sentence(window)}; a host at ${price:.2f} an hour could not start, work and be "
                        "ended within it"
                    )
        return ""

    def rent(self, pool: str, price: float, startup: float) -> None:
        """Sets aside what refuses() asked for."""
        self._scopes = [
            replace(
                scope,
                hourly=scope.hourly + price,
                windows=tuple(
                    replace(window, spent=window.spent + window.keeps(price, startup + WORKING))
                    for window in scope.windows
                ),
            )
            if scope.covers(pool)
            else scope
            for scope in self._scopes
        ]

    def _reached(self, pool: str, seconds: float) -> str:
        for scope in self._scopes:
            for window in scope.windows if scope.covers(pool) else ():
                if window.reached(scope.hourly, seconds):
                    return f"{scope.sentence(window)}; the rest is kept for ending its hosts"
        return ""
