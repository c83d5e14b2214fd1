"""Tickets: the list with its filters, and what can be done with all of them that match."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.api.dependencies import aware, caller_of, root_of, services_of
from app.api.security import READ, SUBMIT
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.pages import page, wants_events
from app.console.render import HEADERS, html, query
from app.errors import invalid
from app.queue.words import LOOKED_AT
from app.services.ticket_list import MOST_COUNTED, Search, Seen, State
from app.services.ticket_words import has_words
from app.storable import StorableText

PER_PAGE = 50
CANCELS_AT_ONCE = 8

router = APIRouter(prefix=f"{PREFIX}/tickets", route_class=PageRoute, include_in_schema=False)

Word = Annotated[StorableText, Query(max_length=255)]


async def _searched(
    state: str = "",
    model: Word = "",
    reference: Word = "",
    batch: str = "",
    server: Word = "",
    error: Word = "",
    text: Word = "",
    meta: Word = "",
    after: str = "",
    before: str = "",
) -> tuple[Search, dict[str, str]]:
    """The search, and the filters as the address has them; an empty field of a form is no filter."""
    given = {
        "state": state,
        "model": model,
        "reference": reference,
        "batch": batch,
        "server": server,
        "error": error,
        "text": text,
        "meta": meta,
        "after": after,
        "before": before,
    }
    search = Search(
        state=_one_of("state", state, State),
        model=model or None,
        reference=reference or None,
        batch_id=_one_of("batch", batch, UUID),
        server=server or None,
        error_code=error or None,
        text=_one_of("text", text, _with_words),
        metadata=_one_of("meta", meta, _path_and_value),
        created_after=aware("after", _one_of("after", after, _time)),
        created_before=aware("before", _one_of("before", before, _time)),
    )
    return search, given


def _path_and_value(text: str) -> tuple[tuple[str, ...], str]:
    path, sign, value = (part.strip() for part in text.partition("="))
    if not sign or not path:
        raise ValueError
    return tuple(path.split(".")), value


def _with_words(text: str) -> str:
    if not has_words(text):
        raise ValueError
    return text


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _one_of(name: str, text: str, kind: Any) -> Any:
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        expected = {
            "state": f"is one of {', '.join(State)}",
            "batch": "is the id of a batch, a UUID",
            "text": "has no word: a letter or a digit at least is needed to look for",
            "meta": "is a path and a value, like source.name = tests",
        }
        raise invalid(name, expected.get(name, "is a time, like 2026-01-31T08:00")) from None


Searched = Annotated[tuple[Search, dict[str, str]], Depends(_searched)]


@router.get("", dependencies=[READ])
async def tickets(request: Request, searched: Searched, older_than: UUID | None = None) -> Response:
    search, given = searched
    services, caller = services_of(request), caller_of(request)

    async def gather() -> dict[str, Any]:
        found, counted = await asyncio.gather(
            services.ticket_list.page(caller, search, PER_PAGE, older_than),
            services.ticket_list.count(caller, search),
        )
        return {
            "found": found,
            "counted": counted,
            "given": given,
            "search": search,
            "looked_at": LOOKED_AT,
            "states": list(State),
            "models": models,
            "seen": seen,
            "older_than": older_than,
        }

    # Not live: what the fields offer to choose from.
    models: list[str] = []
    seen = Seen((), (), ())
    if not wants_events(request):
        models = sorted(name for name in await services.catalog.names() if caller.sees(name))
        seen = await services.ticket_list.seen(caller)
    return await page(request, "tickets.html", gather)


@router.get("/cancel", dependencies=[SUBMIT])
async def ask_to_cancel(request: Request, searched: Searched) -> Response:
    """Says how many would be cancelled before any is."""
    search, given = searched
    counted = await services_of(request).ticket_list.count(caller_of(request), search)
    values: dict[str, Any] = {"counted": counted, "given": given, "most": MOST_COUNTED, "form": form_token_of(request)}
    return with_cookie(request, html(request.scope, "cancel.html", **values))


@router.post("/cancel", dependencies=[SUBMIT])
async def cancel(request: Request, searched: Searched) -> Response:
    """Cancels those that match and are not final; of more than MOST_COUNTED, the newest."""
    search, given = searched
    services, caller = services_of(request), caller_of(request)
    ids = iter(await services.ticket_list.ids(caller, search))

    async def work() -> None:
        for id_ in ids:
            await services.results.cancel(caller, id_)

    await asyncio.gather(*(work() for _ in range(CANCELS_AT_ONCE)))
    return RedirectResponse(f"{root_of(request)}{PREFIX}/tickets{query(given)}", 303, HEADERS)
