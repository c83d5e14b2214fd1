"""Who used how much of a server's time: what is in flight together shares it equally."""

from __future__ import annotations

import time
from collections.abc import Callable


class Shares:
    """The time in which a server had work, divided among its requests.

    A clock that runs at 1/k of real time while k requests are in flight: a request's share is how far that clock went
    while it ran, and the shares of all requests add up to the seconds in which there were any.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._at = 0.0
        self._clock = 0.0
        self._in_flight = 0

    def join(self) -> Share:
        """A request starts."""
        self._read()
        self._in_flight += 1
        return Share(self, self._clock)

    def leave(self, since: float) -> float:
        clock = self._read()
        self._in_flight -= 1
        return clock - since

    def _read(self) -> float:
        now = self._now()
        if self._in_flight:
            self._clock += (now - self._at) / self._in_flight
        self._at = now
        return self._clock


class Share:
    """One request's part."""

    def __init__(self, shares: Shares, since: float) -> None:
        self._shares = shares
        self._since = since
        self._seconds: float | None = None

    def end(self) -> float:
        """Its seconds up to the first call, which ends it."""
        if self._seconds is None:
            self._seconds = self._shares.leave(self._since)
        return self._seconds
