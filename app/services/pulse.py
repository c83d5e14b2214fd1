"""Wakes those who show something whenever a ticket ended, and now and then besides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# A page is made anew at most this often, and at least that often, in seconds.
SHORTEST_SECONDS = 0.5
LONGEST_SECONDS = 2.0


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

    @staticmethod
    async def beat(event: asyncio.Event) -> None:
        """Waits until it is time to look again."""
        await asyncio.sleep(SHORTEST_SECONDS)
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), LONGEST_SECONDS - SHORTEST_SECONDS)
        event.clear()
