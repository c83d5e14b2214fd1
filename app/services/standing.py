"""What a key has used of its limits, as this process knows it: pure, no I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

WINDOW_SECONDS = 60


@dataclass
class Window:
    """Requests of the last minute, by second: `shared` is what Postgres told, the others are not yet in it."""

    shared: Counter[int] = field(default_factory=Counter)
    sending: Counter[int] = field(default_factory=Counter)
    own: Counter[int] = field(default_factory=Counter)

    def count(self, now: float) -> None:
        self.own[int(now)] += 1

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


@dataclass
class Standing:
    """One key. `read_at` and `touched_at` on the monotonic clock."""

    owner_id: int
    pending_limit: int | None
    tokens_per_day: int | None
    window: Window = field(default_factory=Window)
    pending: Pending = field(default_factory=Pending)
    tokens: int = 0
    read_at: float = float("-inf")
    touched_at: float = 0.0

    def told(self, row: Any, counted: set[UUID], now: float) -> None:
        self.window.told(dict(row["requests"] or ()))
        self.pending.told(row["pending"], counted)
        self.tokens = row["tokens"]
        self.read_at = now


def duration(seconds: float) -> str:
    """As OpenAI writes it in its headers: 1h2m3s, 6m0s, 17ms."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
