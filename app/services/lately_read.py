"""Figures that take long to read where there is much to count: shown as they were read lately."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

# Reading takes this part of the time at most, and whoever asks waits no longer for what is newer.
MAX_SHARE = 0.05
PATIENCE_SECONDS = 0.05


class LatelyRead(Generic[Key, Value]):
    def __init__(self, read: Callable[[Key], Awaitable[Value]]) -> None:
        self._read = read
        self._kept: dict[Key, tuple[float, Value]] = {}
        self._reading: dict[Key, asyncio.Task[Value]] = {}

    async def get(self, key: Key) -> Value:
        """Read just now, or before where that takes its time; raises what `read` does where nothing was read yet."""
        due, value = self._kept.get(key, (0.0, None))
        if value is not None and time.monotonic() < due:
            return value
        if key not in self._reading:
            self._reading[key] = asyncio.create_task(self._refresh(key))
        task = self._reading[key]
        if value is None:
            return await asyncio.shield(task)
        await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
        return task.result() if task.done() and task.exception() is None else value

    async def _refresh(self, key: Key) -> Value:
        started = time.monotonic()
        try:
            value = await self._read(key)
        finally:
            del self._reading[key]
        now = time.monotonic()
        self._kept[key] = (now + (now - started) / MAX_SHARE, value)
        return value
