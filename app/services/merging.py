"""Several streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import TypeVar

from app.background import ended

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """What the streams give, as they give it; an error of one ends all. A reader that is slow holds up all of them."""
    waiting = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                stream = waiting.pop(task)
                with suppress(StopAsyncIteration):
                    part = task.result()
                    waiting[asyncio.ensure_future(anext(stream))] = stream
                    yield part
    finally:
        await ended(waiting)
        for stream in streams:
            await stream.aclose()
