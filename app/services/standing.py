"""What a key has used of its limits, as this process knows it: pure, no I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from app.services.callers import Caller

WINDOW_SECONDS = 60
CAPS = ("dollars_per_month", "tokens_per_month", "dollars_per_day", "tokens_per_day")


@dataclass
class Window:
    """Requests of the last minute, by second: `shared` is what Postgres told, the others are not yet in it."""

    shared: Counter[int] = field(default_factory=Counter)
    sending: Counter[int] = field(default_factory=Counter)
    own: Counter[int] = field(default_factory=Counter)

    def count(self, now: float, requests: int = 1) -> None:
        self.own[int(now)] += requests

    def used(self, now: float) -> int:
        """How many in the last minute, and in the second before it: never more than the limit in any minute."""
        oldest = int(now) - WINDOW_SECONDS
        return sum(n for part in self._parts() for second, n in part.items() if second >= oldest)

    def until_one_leaves(self, now: float) -> float:
        """Seconds until room is made."""
        return max(0.0, min(self._seconds(now), default=now) + WINDOW_SECONDS + 1 - now)

    def until_empty(self, now: float) -> float:
        seconds = self._seconds(now)
        return max(seconds) + WINDOW_SECONDS + 1 - now if seconds else 0.0

    def _seconds(self, now: float) -> list[int]:
        oldest = int(now) - WINDOW_SECONDS
        return [second for part in self._parts() for second in part if second >= oldest]

    def _parts(self) -> tuple[Counter[int], ...]:
        return self.shared, self.sending, self.own

    def send(self) -> Counter[int]:
        """What is to be added in Postgres; counts here until `sent` or `not_sent`."""
        self.sending += self.own
        self.own = Counter()
        return self.sending

    def sent(self) -> None:
        self.shared += self.sending
        self.sending = Counter()

    def told(self, shared: dict[int, int]) -> None:
        self.shared = Counter(shared)


@dataclass
class Pending:
    """Tickets that are not final: `shared` is what Postgres counted, the ids came since."""

    shared: int = 0
    storing: set[UUID] = field(default_factory=set)
    stored: set[UUID] = field(default_factory=set)

    @property
    def used(self) -> int:
        return self.shared + len(self.storing) + len(self.stored)

    def finish(self, ids: set[UUID]) -> None:
        """They are stored now, or will never be; the next count tells."""
        self.storing -= ids
        self.stored |= ids

    def told(self, shared: int, counted: set[UUID]) -> None:
        """`counted` were stored before Postgres counted, which left out those that were being stored."""
        self.shared = shared
        self.stored -= counted


class Cap(NamedTuple):
    """What may be spent in a period, in UTC; `name` is that of the key's field."""

    name: str
    limit: float
    used: float
    ends_at: datetime

    @property
    def is_reached(self) -> bool:
        return self.used >= self.limit

    @property
    def in_dollars(self) -> bool:
        return self.name.startswith("dollars")


@dataclass
class Standing:
    """One key. `read_at` and `touched_at` on the monotonic clock; `spent` by the names of its caps."""

    caller: Caller
    window: Window = field(default_factory=Window)
    pending: Pending = field(default_factory=Pending)
    spent: dict[str, float] = field(default_factory=dict)
    read_at: float = float("-inf")
    touched_at: float = 0.0

    def told(self, row: Any, counted: set[UUID], now: float) -> None:
        self.window.told(dict(row["requests"] or ()))
        self.pending.told(row["pending"], counted)
        self.spent = {name: row[name] for name in CAPS}
        self.read_at = now

    def counted_since(self, today: date) -> date | None:
        """The first day whose usage its caps look at; None for no cap."""
        if self.caller.capped_by_month:
            return today.replace(day=1)
        return today if self.caller.capped else None

    def caps(self, now: datetime) -> list[Cap]:
        """Those the key has, the ones that end last first."""
        found = []
        for name in CAPS:
            limit = getattr(self.caller, name)
            if limit is not None:
                found.append(Cap(name, limit, self.spent.get(name, 0), period_end(name, now)))
        return found


def period_end(name: str, now: datetime) -> datetime:
    """When the day or the month of a cap is over."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if name.endswith("_per_day"):
        return midnight + timedelta(days=1)
    return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)


def duration(seconds: float) -> str:
    """As OpenAI writes it in its headers: 1h2m3s, 6m0s, 17ms."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
