"""Wakes those who show something whenever a ticket ended, and now and then besides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# A page is made anew at most this often, and at least that often, in seconds.
SHORTEST_SECONDS = 0.5
LONGEST_SECONDS = 2.0
# Making pages anew takes this part of the time at most, all of them together, unless each would come later than that.
SHARE, LATEST_SECONDS = 0.1, 5.0


class Pulse:
    def __init__(self) -> None:
        self._watching: set[asyncio.Event] = set()

    def announced(self, _payload: str) -> None:
        """Tickets ended."""
        for event in self._watching:
            event.set()

    @contextmanager
    def watching(self) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._watching.add(event)
        try:
            yield event
        finally:
            self._watching.discard(event)

    async def beat(self, event: asyncio.Event, made_in: float) -> None:
        """Waits until it is time to look again, where making the page took `made_in` seconds."""
        pause = min(max(SHORTEST_SECONDS, made_in * len(self._watching) / SHARE), LATEST_SECONDS)
        await asyncio.sleep(pause)
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), LONGEST_SECONDS - pause)
        event.clear()
