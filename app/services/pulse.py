"""What pages show, made anew whenever a ticket ended and now and then besides: once for all who look at the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from contextlib import suppress
from typing import Any

# A page is made anew at most this often, and at least that often, in seconds.
SHORTEST_SECONDS = 0.5
LONGEST_SECONDS = 2.0
# Making pages anew takes this part of the time at most, all of them together, unless each would come later than that.
SHARE, LATEST_SECONDS = 0.1, 5.0
# Pages made at the same time: each holds a connection of the pool, which submits and polls need more.
MOST_AT_ONCE = 2

Make = Callable[[], Awaitable[Any]]


class Pulse:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._feeds: dict[Hashable, _Feed] = {}
        self._room = asyncio.Semaphore(MOST_AT_ONCE)

    def announced(self, _payload: str) -> None:
        """Tickets ended."""
        for feed in self._feeds.values():
            feed.moved.set()

    async def versions(self, key: Hashable, make: Make) -> AsyncGenerator[Any]:
        """What `make` gives, again and again: the first is made after this call, of the others only the newest is told.

        All who ask with the same key are told of the same ones, by the `make` of whoever came first; what it raises is
        raised here.
        """
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = _Feed(make)
            feed.task = asyncio.create_task(self._work(key, feed))
        feed.followers += 1
        # What is under way may be older than what the follower has already.
        seen = feed.begun
        feed.hurry()
        try:
            while True:
                seen, version = await feed.after(seen)
                yield version
        finally:
            feed.followers -= 1
            if not feed.followers and self._feeds.get(key) is feed:
                del self._feeds[key]
                feed.task.cancel()

    async def _work(self, key: Hashable, feed: _Feed) -> None:
        clock = asyncio.get_running_loop().time
        try:
            # A cancel can be lost where a connection is just handed out.
            while feed.followers:
                async with self._room:
                    began, number = clock(), feed.begin()
                    version = await feed.make()
                feed.tell(number, version)
                made_in = clock() - began
                pause = min(max(SHORTEST_SECONDS, made_in * len(self._feeds) / SHARE), LATEST_SECONDS)
                await feed.rest(pause)
        except Exception as error:
            # Told to those who follow; whoever comes next has it tried again.
            if self._feeds.get(key) is feed:
                del self._feeds[key]
            feed.fail(error)


class _Feed:
    """Versions of one page, numbered as they are begun."""

    task: asyncio.Task[None]

    def __init__(self, make: Make) -> None:
        self.make = make
        self.followers = 0
        self.begun = 0
        self.moved = asyncio.Event()
        self._wanted = asyncio.Event()
        self._news = asyncio.Event()
        self._number, self._version = 0, None
        self._error: Exception | None = None

    def begin(self) -> int:
        """The number of the version that is made now."""
        self._wanted.clear()
        self.moved.clear()
        self.begun += 1
        return self.begun

    def tell(self, number: int, version: Any) -> None:
        self._number, self._version = number, version
        self._announce()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._announce()

    def _announce(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def after(self, number: int) -> tuple[int, Any]:
        """The newest version that was begun after that one; waits for it."""
        while self._number <= number:
            if self._error is not None:
                raise self._error
            await self._news.wait()
        return self._number, self._version

    def hurry(self) -> None:
        """Somebody waits: the next version is made at once."""
        self._wanted.set()
        self.moved.set()

    async def rest(self, pause: float) -> None:
        """Until the next version is due: no sooner than after `pause` seconds, but for who waits."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wanted.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, LONGEST_SECONDS - pause)):
                await self.moved.wait()
