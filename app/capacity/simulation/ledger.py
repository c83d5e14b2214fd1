"""What hosts have cost: from before each is asked for until it is known to be gone, as the tables have it."""

from __future__ import annotations

from datetime import UTC, datetime

from app.capacity.plan import Amounts


class Ledger:
    """Times are seconds since the epoch; hours, days and months are those of UTC."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.total = 0.0
        self._hourly: dict[str, float] = {}
        self._windows: dict[str, tuple[tuple[int, ...], float]] = {}
        # The most that any hour, day and month has cost.
        self.most: dict[str, float] = {}

    def begin(self, host: str, price: float) -> None:
        self._hourly[host] = price

    def end(self, host: str) -> None:
        del self._hourly[host]

    def advance(self, now: float) -> None:
        while self.now < now:
            until = min(now, self.now // 3600 * 3600 + 3600)
            cost = sum(self._hourly.values()) * (until - self.now) / 3600
            for window, key in _windows(self.now).items():
                spent = self._spent(window, key) + cost
                self._windows[window] = (key, spent)
                self.most[window] = max(self.most.get(window, 0.0), spent)
            self.total += cost
            self.now = until

    def amounts(self) -> Amounts:
        """Of the running hour, day and month, and in all."""
        spent = {window: self._spent(window, key) for window, key in _windows(self.now).items()}
        return Amounts(**spent, total=self.total)

    def _spent(self, window: str, key: tuple[int, ...]) -> float:
        last, spent = self._windows.get(window, (key, 0.0))
        return spent if last == key else 0.0


def _windows(at: float) -> dict[str, tuple[int, ...]]:
    moment = datetime.fromtimestamp(at, UTC)
    date = (moment.year, moment.month, moment.day)
    return {"hour": (*date, moment.hour), "day": date, "month": date[:2]}
