"""Tickets: the list with its filters."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.dependencies import aware, caller_of, services_of
from app.api.security import READ
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.pages import page, wants_events
from app.console.render import html
from app.errors import InvalidRequest, invalid
from app.queue.ticket import CANCELLED
from app.services.ticket_list import Search, Seen, State
from app.services.ticket_words import has_words
from app.storable import StorableText

PER_PAGE = 50

router = APIRouter(prefix=f"{PREFIX}/tickets", route_class=PageRoute, include_in_schema=False)

Word = Annotated[StorableText, Query(max_length=255)]


async def _given(
    state: str = "",
    model: Word = "",
    reference: Word = "",
    batch: str = "",
    server: Word = "",
    key: str = "",
    error: Word = "",
    text: Word = "",
    meta: Word = "",
    after: str = "",
    before: str = "",
) -> dict[str, str]:
    """The filters as the address has them; an empty field of a form is no filter."""
    return {
        "state": state,
        "model": model,
        "reference": reference,
        "batch": batch,
        "server": server,
        "key": key,
        "error": error,
        "text": text,
        "meta": meta,
        "after": after,
        "before": before,
    }


Given = Annotated[dict[str, str], Depends(_given)]


async def _searched(given: Given) -> tuple[Search, dict[str, str]]:
    return _search_of(given), given


def _search_of(given: dict[str, str]) -> Search:
    """Raises InvalidRequest, which names the filter that has no such form."""

    def read(name: str, kind: Any = str) -> Any:
        return _one_of(name, given[name], kind)

    return Search(
        state=read("state", State),
        model=read("model"),
        reference=read("reference"),
        batch_id=read("batch", _batch_id),
        server=read("server"),
        key_id=read("key", UUID),
        error_code=read("error", _not_cancelled if given["state"] == State.CANCELLED else str),
        text=read("text", _with_words),
        metadata=read("meta", _path_and_value),
        created_after=aware("after", read("after", _time)),
        created_before=aware("before", read("before", _time)),
    )


def _batch_id(text: str) -> UUID:
    return UUID(text.strip().removeprefix("batch_"))


def _path_and_value(text: str) -> tuple[tuple[str, ...], str]:
    path, sign, value = (part.strip() for part in text.partition("="))
    if not sign or not path:
        raise ValueError
    return tuple(path.split(".")), value


def _not_cancelled(code: str) -> str:
    if code != CANCELLED:
        raise ValueError
    return code


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
            "batch": "is the id of a batch, like batch_01a228f9e52e73e8908499a021d8a3fa",
            "key": "is the id of a key: choose one of the list",
            "text": "has no word: a letter or a digit at least is needed to look for",
            "error": "is another code than that of cancelled tickets: leave it or the state empty",
            "meta": "is a path and a value, like source.name = tests",
        }
        raise invalid(name, expected.get(name, "is a time, like 2026-01-31T08:00")) from None


Searched = Annotated[tuple[Search, dict[str, str]], Depends(_searched)]


@router.get("", dependencies=[READ])
async def tickets(
    request: Request,
    given: Given,
    older_than: UUID | None = None,
    cancelled: int | None = None,
    again: int | None = None,
) -> Response:
    """`cancelled` and `again` are how many were cancelled or run again, which is said once."""
    services, caller = services_of(request), caller_of(request)
    try:
        search = _search_of(given)
    except InvalidRequest as error:
        if wants_events(request):
            raise
        values = await _fields(request, given) | {"refused": error, "older_than": None, "form": form_token_of(request)}
        return with_cookie(request, html(request.scope, "tickets.html", 422, **values))

    async def gather() -> dict[str, Any]:
        found, counted = await asyncio.gather(
            services.ticket_list.page(caller, search, PER_PAGE, older_than),
            services.ticket_list.count(caller, search),
        )
        said = {"cancelled": cancelled, "again": again, "refused": None}
        return fields | said | {"found": found, "counted": counted, "search": search, "older_than": older_than}

    fields = await _fields(request, given)
    return await page(request, "tickets.html", gather)


async def _fields(request: Request, given: dict[str, str]) -> dict[str, Any]:
    """The form of the filters; what its fields offer to choose from is not live."""
    services, caller = services_of(request), caller_of(request)
    models: list[str] = []
    seen, keys = Seen((), (), ()), []
    if not wants_events(request):
        models = sorted(name for name in await services.catalog.names() if caller.sees(name))
        seen = await services.ticket_list.seen(caller)
        keys = [key for key in await services.keys.seen_by(caller) if key["owner_id"] == caller.owner_id]
    return {"given": given, "states": list(State), "models": models, "seen": seen, "keys": keys}
