"""How many tickets came in lately, step by step: what is over is counted once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.queue.minutes import MinuteStore
from app.services.lately_read import LatelyRead

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What came in so lately is counted anew: what a batch stores comes after its ids were made.
OPEN = timedelta(minutes=2)
# The steps of so many owners are held.
MOST_OWNERS = 1000
# So many steps are counted at first.
FIRST_STEPS = 3


def beginning(step: timedelta, steps: int) -> datetime:
    """Of the first of `steps`, the last of which is now; they are counted from 1970."""
    now = datetime.now(UTC)
    return now - (now - EPOCH) % step - step * (steps - 1)


class Submitted:
    """Of the last `steps` of the length `step`; `most` older ones more with each look, until all are counted."""

    def __init__(self, store: MinuteStore, step: timedelta, steps: int, most: int) -> None:
        self._store = store
        self._step, self._steps, self._most = step, steps, most
        # Steps that no further ticket can be of.
        self._over: dict[int | None, dict[datetime, int]] = {}
        self._lately = LatelyRead(self._read)

    async def get(self, whose: int | None) -> tuple[dict[datetime, int], bool]:
        """How many tickets came in each step, and whether that is all of them; None for those of all owners."""
        return await self._lately.get(whose)

    async def _read(self, whose: int | None) -> tuple[dict[datetime, int], bool]:
        """Twice as many of the older steps with each call, up to `most`."""
        now, step = datetime.now(UTC), self._step
        began = beginning(step, self._steps)
        over = {each: tickets for each, tickets in self._over.get(whose, {}).items() if each >= began}
        first = min(over, default=began + step * (self._steps - 1 - FIRST_STEPS))
        earliest = max(began, first - step * min(len(over), self._most))
        counted = over | await self._store.submitted(max(over, default=first - step) + step, now, step, whose)
        if earliest < first:
            counted |= await self._store.submitted(earliest, first, step, whose)
        if len(self._over) >= MOST_OWNERS:
            self._over.clear()
        steps = (began + place * step for place in range(self._steps))
        self._over[whose] = {each: counted.get(each, 0) for each in steps if earliest <= each <= now - OPEN - step}
        return counted, earliest == began
