"""A page and its live parts: one address, which as an event stream tells what of the page has changed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from fastapi import Request, Response
from pydantic_core import to_json

from app.api.dependencies import caller_of, root_of, services_of
from app.api.sse import EventStream, event_bytes
from app.console.entrance import cookie_of, form_token_of, with_cookie
from app.console.render import ENVIRONMENT, common, html
from app.errors import DatabaseUnavailable

LIVE = "live_"
EACH = "each_"
RETRY_MILLISECONDS = 2000
# Not to be guessed, so that nothing else on a page is taken for it.
FORM = secrets.token_hex(32)

Gather = Callable[[], Awaitable[dict[str, Any]]]


def wants_events(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


async def page(request: Request, template: str, gather: Gather) -> Response:
    """The page, or for a browser that shows it already the stream of its changes.

    Parts that change are the template's blocks whose names begin with LIVE, in elements with these ids. What `gather`
    gives follows from the address and the caller alone: it is made once for all browsers that have both in common.
    """
    if wants_events(request):
        return event_stream(_changes(request, template, gather))
    return with_cookie(request, html(request.scope, template, form=form_token_of(request), **await gather()))


def event_stream(events: AsyncGenerator[bytes]) -> EventStream:
    """Ends where Postgres is out of reach: the browser comes again."""

    async def while_available() -> AsyncGenerator[bytes]:
        with suppress(DatabaseUnavailable):
            async with aclosing(events):
                async for event in events:
                    yield event

    return EventStream(while_available())


async def _changes(request: Request, template: str, gather: Gather) -> AsyncGenerator[bytes]:
    """Goes on until this process stops or the session ends: the browser comes again then."""
    services, parts, shown = services_of(request), Parts(request, template), Shown(request)

    async def make() -> dict[str, str]:
        return parts.made(await gather())

    yield b"retry: %d\n\n" % RETRY_MILLISECONDS
    # A caller's webhook changes nothing of a page, and cannot be hashed.
    key = (replace(caller_of(request), webhook=None), root_of(request), str(request.url))
    async with aclosing(services.pulse.versions(key, make)) as versions:
        async for made in versions:
            if services.streams.closed or not await still_known(request):
                return
            for each in shown.changed(made):
                yield each


class Parts:
    """The live parts of a page, by the ids of their elements; a form in them has FORM where a browser's token belongs.

    A block whose name begins with EACH is made for each item of a list among the values: `each_columns_head` for those
    of `columns`, in elements with the ids `columns-KEY-head`, KEY being what the item has as its `key`.
    """

    def __init__(self, request: Request, template: str) -> None:
        self._template = ENVIRONMENT.get_template(template)
        self._common = common(request.scope) | {"form": FORM}

    def made(self, values: dict[str, Any]) -> dict[str, str]:
        return dict(self._made(self._common | values))

    def _made(self, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for name, block in self._template.blocks.items():
            if name.startswith(LIVE):
                yield name, "".join(block(self._template.new_context(values)))
            elif name.startswith(EACH):
                of, _, part = name.removeprefix(EACH).rpartition("_")
                for item in values[of]:
                    made = block(self._template.new_context(values | {"item": item}))
                    yield f"{of}-{item['key']}-{part}", "".join(made)


class Shown:
    """The live parts of a page as one browser has them."""

    def __init__(self, request: Request) -> None:
        self._form = form_token_of(request)
        self._sent: dict[str, str] = {}

    def changed(self, parts: Mapping[str, str]) -> list[bytes]:
        """An event for each part that is not as it was sent before."""
        events = []
        for name, made in parts.items():
            if self._sent.get(name) != made:
                self._sent[name] = made
                part = {"part": name, "html": made.replace(FORM, self._form)}
                events.append(event_bytes(to_json(part), "part"))
        return events


async def still_known(request: Request) -> bool:
    """Whether the browser's session goes on; without one it was admitted for where it is."""
    token = cookie_of(request.scope)
    if token is None or request.state.caller.key_id is None:
        return True
    caller = await services_of(request).sessions.caller(token)
    return caller is not None
