"""How long a slot of an engine stands empty between two requests, and how many more requests make up for it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

# The weight of the newest measurement in a mean.
WEIGHT = 1 / 32
# Slots that stand empty on average; where it is less, no request goes ahead.
NEGLIGIBLE = 0.1
# So many of the requests that ended last are remembered.
REMEMBERED = 512


def most_ahead(slots: int) -> int:
    """An eighth of them: a setting of few slots stays a bound, also where the engine has room for more."""
    return slots // 8


class Mean:
    """A moving one."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + (value - self.value) * WEIGHT


class Turnover:
    """Of one lane, as this process sees it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started: deque[float] = deque()
        self._ended: deque[float] = deque(maxlen=REMEMBERED)
        self._refilled: deque[float] = deque(maxlen=REMEMBERED)
        self._busy_seconds, self._busy_squares = Mean(), Mean()
        self._empty_seconds = Mean()

    def started(self) -> None:
        """A request begins."""
        now = self._now()
        self._started.append(now)
        if self._refilled:
            self._empty_seconds.add(now - self._refilled.popleft())

    def ended(self) -> None:
        """A request is over, taken for the oldest: which one it was matters little to a mean."""
        now = self._now()
        self._ended.append(now)
        seconds = now - self._started.popleft()
        self._busy_seconds.add(seconds)
        self._busy_squares.add(seconds * seconds)

    def take_ended(self) -> Sequence[float]:
        """When the requests ended whose slots are filled next; each is told once."""
        ended = list(self._ended)
        self._ended.clear()
        return ended

    def refilled(self, ended: Sequence[float], waited: Iterable[float | None]) -> None:
        """Other requests are about to begin in these slots, which had `waited` so many seconds in the queue.

        One that came after its slot was free found it empty for want of work, and tells nothing.
        """
        now = self._now()
        pairs = zip(ended, waited, strict=False)
        self._refilled.extend(at for at, seconds in pairs if seconds is not None and seconds >= now - at)

    def ahead(self, slots: int) -> int:
        """How many requests beyond its `slots` keep an engine busy while ends are settled, `most_ahead` at most.

        Ends come at random: so many slots are empty on average, and a deviation more now and then. A request counts by
        its length: a few short ones must not bring long ones into the engine's queue, where priority no longer counts.
        """
        seconds, squares, empty = self._busy_seconds.value, self._busy_squares.value, self._empty_seconds.value
        if not seconds or not squares or empty is None:
            return 0
        mean = empty * slots * seconds / squares
        if mean < NEGLIGIBLE:
            return 0
        return min(math.ceil(mean + math.sqrt(mean)), most_ahead(slots))
