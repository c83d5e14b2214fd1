"""Following answers on a page as they grow, with the parts of the page that change."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any
from uuid import UUID

from fastapi import Request
from pydantic_core import to_json

from app.api.dependencies import caller_of, services_of
from app.api.sse import event_bytes
from app.background import ended
from app.console.pages import Gather, Parts, Shown, still_known
from app.errors import ResultNotFound, StreamRestarted
from app.services.pulse import LONGEST_SECONDS
from app.services.streams import Event, Following


class Heard(ABC):
    """What answers say, until somebody takes it."""

    def __init__(self) -> None:
        # One of several answers has ended since the page was last made.
        self.ended = False
        self._moved = asyncio.Event()

    async def listen(self) -> None:
        try:
            await self._listen()
        finally:
            self._moved.set()

    async def more(self) -> list[dict[str, Any]]:
        """What came since the last call, as `text` events say it; waits for it a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._moved.wait()
        self._moved.clear()
        return self._take()

    @abstractmethod
    async def _listen(self) -> None:
        """Keeps what comes, and sets `_moved` with it; returns where no more will."""

    @abstractmethod
    def _take(self) -> list[dict[str, Any]]: ...


async def followed(
    request: Request, template: str, gather: Gather, hear: Callable[[dict[str, Any]], Awaitable[Heard]]
) -> AsyncGenerator[bytes]:
    """The answers as they come, `text` by `text`, and the parts that change; `ended` where nothing will.

    Of the values of the page, `final` says whether all has ended; `hear` opens what is heard of the rest.
    """
    clock = asyncio.get_running_loop().time
    parts, shown = Parts(request, template), Shown(request)
    values = await gather()
    for each in shown.changed(parts.made(values)):
        yield each
    if not values["final"]:
        heard = await hear(values)
        listening = asyncio.create_task(heard.listen())
        look_at = clock()
        try:
            while not values["final"]:
                for text in await heard.more():
                    yield event_bytes(to_json(text), "text")
                if clock() >= look_at or heard.ended or listening.done():
                    heard.ended = False
                    if not await still_known(request):
                        return
                    values = await gather()
                    for each in shown.changed(parts.made(values)):
                        yield each
                    look_at = clock() + LONGEST_SECONDS
                    if listening.done() and not values["final"]:
                        # This process stops, or another attempt tells another text: the browser comes again.
                        return
        finally:
            await ended([listening])
    yield event_bytes(b"{}", "ended")


def ticket_followed(request: Request, template: str, id_: UUID, gather: Gather) -> AsyncGenerator[bytes]:
    """As `followed`, for one ticket."""

    async def hear(_: dict[str, Any]) -> Heard:
        return _Answer(await services_of(request).streams.open(caller_of(request), id_))

    return followed(request, template, gather, hear)


class _Answer(Heard):
    """The first choice of one answer."""

    def __init__(self, following: Following) -> None:
        super().__init__()
        self._following = following
        self._texts: list[str] = []

    async def _listen(self) -> None:
        with suppress(StreamRestarted, ResultNotFound):
            async with aclosing(self._following.events()) as events:
                async for item in events:
                    if isinstance(item, Event):
                        self._texts += [delta.text for delta in item.deltas if delta.index == 0]
                        self._moved.set()

    def _take(self) -> list[dict[str, Any]]:
        text, self._texts = "".join(self._texts), []
        return [{"text": text}] if text else []
