"""A page and its live parts: one address, which as an event stream tells what of the page has changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

from fastapi import Request, Response
from pydantic_core import to_json

from app.api.dependencies import services_of
from app.api.sse import EventStream, event_bytes
from app.console.entrance import cookie_of, form_token_of, with_cookie
from app.console.render import ENVIRONMENT, common, html

LIVE = "live_"
EACH = "each_"
RETRY_MILLISECONDS = 2000

Gather = Callable[[], Awaitable[dict[str, Any]]]


def wants_events(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


async def page(request: Request, template: str, gather: Gather) -> Response:
    """The page, or for a browser that shows it already the stream of its changes.

    Parts that change are the template's blocks whose names begin with LIVE, in elements with these ids.
    """
    form = form_token_of(request)
    if wants_events(request):
        return EventStream(_changes(request, template, gather, form))
    return with_cookie(request, html(request.scope, template, form=form, **await gather()))


async def _changes(request: Request, template: str, gather: Gather, form: str) -> AsyncGenerator[bytes]:
    services = services_of(request)
    parts = Parts(request, template, form)
    clock = asyncio.get_running_loop().time
    yield b"retry: %d\n\n" % RETRY_MILLISECONDS
    with services.pulse.watching() as event:
        while not services.streams.closed and await still_known(request):
            began = clock()
            events = parts.changed(await gather())
            made_in = clock() - began
            for each in events:
                yield each
            await services.pulse.beat(event, made_in)
    yield event_bytes(b"{}", "ended")


class Parts:
    """The live parts of a page as the browser has them.

    A block whose name begins with EACH is made for each item of a list among the values: `each_columns_head` for those
    of `columns`, in elements with the ids `columns-KEY-head`, KEY being what the item has as its `key`.
    """

    def __init__(self, request: Request, template: str, form: str) -> None:
        self._template = ENVIRONMENT.get_template(template)
        self._common = common(request.scope) | {"form": form}
        self._sent: dict[str, str] = {}

    def changed(self, values: dict[str, Any]) -> list[bytes]:
        """An event for each part that is not as it was sent before."""
        events = []
        for name, made in self._made(self._common | values):
            if self._sent.get(name) != made:
                self._sent[name] = made
                events.append(event_bytes(to_json({"part": name, "html": made}), "part"))
        return events

    def _made(self, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """The id of each part, and its HTML."""
        for name, block in self._template.blocks.items():
            if name.startswith(LIVE):
                yield name, "".join(block(self._template.new_context(values)))
            elif name.startswith(EACH):
                of, _, part = name.removeprefix(EACH).rpartition("_")
                for item in values[of]:
                    made = block(self._template.new_context(values | {"item": item}))
                    yield f"{of}-{item['key']}-{part}", "".join(made)


async def still_known(request: Request) -> bool:
    """Whether the browser's session goes on; without one it was admitted for where it is."""
    token = cookie_of(request.scope)
    if token is None or request.state.caller.key_id is None:
        return True
    caller = await services_of(request).sessions.caller(token)
    return caller is not None
