"""Following one ticket on a page: its answer as it grows, and the parts of the page that change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from uuid import UUID

from fastapi import Request
from pydantic_core import to_json

from app.api.dependencies import caller_of, services_of
from app.api.sse import event_bytes
from app.console.entrance import form_token_of
from app.console.pages import Gather, Parts, still_known
from app.errors import ResultNotFound, StreamRestarted
from app.services.pulse import LONGEST_SECONDS
from app.services.streams import Event, Following


async def followed(request: Request, template: str, id_: UUID, gather: Gather) -> AsyncGenerator[bytes]:
    """The answer as it comes, `text` by `text`, and the parts that change; `ended` where nothing will.

    Of the values of the page, `final` says whether the ticket has ended.
    """
    clock = asyncio.get_running_loop().time
    parts = Parts(request, template, form_token_of(request))
    values = await gather()
    for each in parts.changed(values):
        yield each
    if not values["final"]:
        heard = Heard()
        following = await services_of(request).streams.open(caller_of(request), id_)
        listening = asyncio.create_task(heard.listen(following))
        look_at = clock()
        try:
            while not values["final"]:
                if text := await heard.more():
                    yield event_bytes(to_json({"text": text}), "text")
                if clock() >= look_at or listening.done():
                    if not await still_known(request):
                        return
                    values = await gather()
                    for each in parts.changed(values):
                        yield each
                    look_at = clock() + LONGEST_SECONDS
                    if listening.done() and not values["final"]:
                        # This process stops, or another attempt tells another text: the browser comes again.
                        return
        finally:
            listening.cancel()
            await asyncio.wait({listening})
    yield event_bytes(b"{}", "ended")


class Heard:
    """What the first choice of an answer says, until somebody takes it."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._moved = asyncio.Event()

    async def listen(self, following: Following) -> None:
        try:
            with suppress(StreamRestarted, ResultNotFound):
                async with aclosing(following.events()) as events:
                    async for item in events:
                        if isinstance(item, Event):
                            self._texts += [delta.text for delta in item.deltas if delta.index == 0]
                            self._moved.set()
        finally:
            self._moved.set()

    async def more(self) -> str:
        """What came since the last call; waits for it a while, '' where nothing came."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._moved.wait(), LONGEST_SECONDS)
        self._moved.clear()
        texts, self._texts = self._texts, []
        return "".join(texts)
