"""One ticket: what was asked, the answer as it grows, its attempts, and what can be done with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic_core import to_json

from app.api.dependencies import caller_of, root_of, services_of
from app.api.schemas import Result
from app.api.security import READ, SUBMIT, WORK
from app.api.sse import EventStream, event_bytes
from app.console.entrance import PREFIX, PageRoute, form_token_of
from app.console.pages import Parts, page, still_known, wants_events
from app.console.render import HEADERS, state_of
from app.errors import ResultNotFound, StreamRestarted
from app.queue.ticket import Status
from app.services.pulse import LONGEST_SECONDS
from app.services.streams import Event, Following

TEMPLATE = "ticket.html"

router = APIRouter(prefix=f"{PREFIX}/tickets", route_class=PageRoute, include_in_schema=False)


@router.get("/{result_id}", dependencies=[READ])
async def ticket(request: Request, result_id: UUID) -> Response:
    async def gather() -> dict[str, Any]:
        return await _shown(request, result_id)

    if wants_events(request):
        return EventStream(_followed(request, result_id))
    return await page(request, TEMPLATE, gather)


async def _shown(request: Request, id_: UUID) -> dict[str, Any]:
    services, caller = services_of(request), caller_of(request)
    row = await services.results.get(caller, id_)
    waiting = await services.results.waiting(row)
    context = await services.contexts.get(caller, row["context_id"])
    return {
        "row": row,
        "phase": state_of(row),
        "final": Status(row["status"]).final,
        "waiting": waiting,
        "prompt": context,
        "attempts": await services.results.attempts(caller, id_),
        "document": to_json(Result.of(row, waiting), indent=2).decode(),
        "address": str(request.base_url).rstrip("/"),
    }


async def _followed(request: Request, id_: UUID) -> AsyncGenerator[bytes]:
    """The answer as it comes, `text` by `text`, and the parts that change; `ended` where nothing will."""
    clock = asyncio.get_running_loop().time
    parts = Parts(request, TEMPLATE, form_token_of(request))
    values = await _shown(request, id_)
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
                    values = await _shown(request, id_)
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


@router.post("/{result_id}/cancel", dependencies=[SUBMIT])
async def cancel(request: Request, result_id: UUID) -> Response:
    await services_of(request).results.cancel(caller_of(request), result_id)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/tickets/{result_id}", 303, HEADERS)


@router.post("/{result_id}/retry", dependencies=[WORK])
async def retry(request: Request, result_id: UUID) -> Response:
    row, _ = await services_of(request).submissions.retry(caller_of(request), result_id)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/tickets/{row['id']}", 303, HEADERS)
