"""Chats: a message to a model becomes a ticket, whose answer grows on the page; then on from it, or once more."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.api.dependencies import caller_of, root_of, services_of
from app.api.holding import make_ticket
from app.api.security import READ, SUBMIT, WORK
from app.console.asking import LONGEST, Word, text_models
from app.console.chat_asked import FIELDS, AskedForm, prepared_of, uuid_or_none
from app.console.chat_view import SHOWN, models_that_see, shown
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.following import ticket_followed
from app.console.pages import event_stream, page, wants_events
from app.console.render import HEADERS, html
from app.errors import AppError, invalid
from app.services.chats import AFTER, FROM, reference
from app.services.ratings import MOST_COMMENT_CHARS, RATINGS
from app.services.ticket_words import has_words
from app.storable import StorableText

FORM, TEMPLATE = "chats.html", "chat.html"

router = APIRouter(prefix=f"{PREFIX}/chat", route_class=PageRoute, include_in_schema=False)


@router.get("", dependencies=[READ])
async def chats(
    request: Request,
    model: str = "",
    instructions: str = "",
    text: Annotated[StorableText, Query(max_length=255)] = "",
    before: datetime | None = None,
) -> Response:
    """A new chat, and those there are; `text` looks for words in them."""
    return await _chats(request, {"model": model, "instructions": instructions}, text=text, before=before)


@router.post("", dependencies=[WORK])
async def begun(request: Request, asked: AskedForm) -> Response:
    """A new chat; `after` may be any ticket of a chat that has an answer."""
    services, caller = services_of(request), caller_of(request)
    chat_id = None
    try:
        prepared = await prepared_of(request, asked, FROM)
        chat_id = await services.chats.create(caller, asked.message)
        row, _ = await make_ticket(request, prepared, streamed=True, client_reference=reference(chat_id))
    except AppError as error:
        if chat_id is not None:
            await services.chats.delete(caller, chat_id)
        if error.status >= 500 or error.status == 404:
            raise
        return await _chats(request, asked.fields, error)
    # Now that its ticket is there, too.
    await services.chats.used(caller, chat_id)
    return _to(request, chat_id, row["id"])


@router.get("/{chat_id}", dependencies=[READ])
async def chat(request: Request, chat_id: UUID, at: UUID | None = None) -> Response:
    """The chat by way of the ticket `at`, or of its newest one."""

    async def gather() -> dict[str, Any]:
        return await shown(request, chat_id, at, {})

    if wants_events(request):
        values = await gather()
        return event_stream(ticket_followed(request, TEMPLATE, values["leaf"], gather))
    return await page(request, TEMPLATE, gather)


@router.post("/{chat_id}", dependencies=[WORK])
async def sent(request: Request, chat_id: UUID, asked: AskedForm, at: Word = "") -> Response:
    """The next message, or an edited one, which goes on from where the one before it did."""
    services, caller = services_of(request), caller_of(request)
    await services.chats.get(caller, chat_id)
    try:
        path = await services.chats.path(caller, chat_id, uuid_or_none(asked.after))
        inside = any(str(turn.id) == asked.after for turn in path)
        prepared = await prepared_of(request, asked, AFTER if inside else FROM)
        row, _ = await make_ticket(request, prepared, streamed=True, client_reference=reference(chat_id))
    except AppError as error:
        if error.status >= 500 or error.status == 404:
            raise
        values = await shown(request, chat_id, uuid_or_none(at), asked.fields, error)
        answer = html(request.scope, TEMPLATE, error.status, form=form_token_of(request), **values)
        return with_cookie(request, answer)
    await services.chats.used(caller, chat_id)
    return _to(request, chat_id, row["id"])


@router.post("/{chat_id}/again", dependencies=[WORK])
async def again(request: Request, chat_id: UUID, turn: Word = "") -> Response:
    """Another answer to the same message, with the same parameters."""
    services, caller = services_of(request), caller_of(request)
    await services.chats.get(caller, chat_id)
    row, _ = await services.submissions.retry(caller, await _of_chat(request, chat_id, turn), streamed=True)
    await services.chats.used(caller, chat_id)
    return _to(request, chat_id, row["id"])


@router.post("/{chat_id}/stop", dependencies=[SUBMIT])
async def stop(request: Request, chat_id: UUID, turn: Word = "") -> Response:
    result_id = await _of_chat(request, chat_id, turn)
    await services_of(request).results.cancel(caller_of(request), result_id)
    return _to(request, chat_id, result_id)


@router.post("/{chat_id}/rate", dependencies=[SUBMIT])
async def rate(
    request: Request,
    chat_id: UUID,
    turn: Word = "",
    rating: Word = "",
    comment: Annotated[StorableText, Form(max_length=MOST_COMMENT_CHARS)] = "",
) -> Response:
    """`rating` is `good` or `bad`, or nothing to take one back."""
    ratings, caller = services_of(request).ratings, caller_of(request)
    result_id = await _of_chat(request, chat_id, turn)
    if rating not in ("", *RATINGS):
        raise invalid("rating", "is good, bad or nothing")
    if rating:
        await ratings.set(caller, result_id, RATINGS[rating], comment.strip())
    else:
        await ratings.remove(caller, result_id)
    return _to(request, chat_id, result_id)


@router.post("/{chat_id}/rename", dependencies=[SUBMIT])
async def rename(
    request: Request, chat_id: UUID, title: Annotated[StorableText, Form(min_length=1, max_length=120)]
) -> Response:
    await services_of(request).chats.rename(caller_of(request), chat_id, title)
    return _to(request, chat_id)


@router.post("/{chat_id}/delete", dependencies=[SUBMIT])
async def delete(request: Request, chat_id: UUID) -> Response:
    await services_of(request).chats.delete(caller_of(request), chat_id)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/chat", 303, HEADERS)


def _to(request: Request, chat_id: UUID, at: UUID | None = None) -> Response:
    place = "" if at is None else f"?at={at}#leaf"
    return RedirectResponse(f"{root_of(request)}{PREFIX}/chat/{chat_id}{place}", 303, HEADERS)


async def _of_chat(request: Request, chat_id: UUID, turn: str) -> UUID:
    """The id of a ticket of the chat; raises InvalidRequest, or ChatNotFound."""
    services, caller = services_of(request), caller_of(request)
    await services.chats.get(caller, chat_id)
    result_id = uuid_or_none(turn)
    if result_id is None or result_id not in {
        each.id for each in await services.chats.path(caller, chat_id, result_id)
    }:
        raise invalid("turn", "is the id of a ticket of this chat")
    return result_id


async def _chats(
    request: Request,
    given: Mapping[str, str],
    refused: AppError | None = None,
    *,
    text: str = "",
    before: datetime | None = None,
) -> Response:
    services, caller = services_of(request), caller_of(request)
    if has_words(text):
        found, older = await services.chats.search(caller, text, SHOWN, before)
    elif text:
        found, older = [], None
    else:
        found = await services.chats.newest(caller, SHOWN, before)
        older = found[-1]["used_at"] if len(found) == SHOWN else None
    values = {
        "given": dict.fromkeys(FIELDS, "") | dict(given),
        "longest": LONGEST,
        "models": await text_models(request),
        "seeing": await models_that_see(request),
        "named": await services.instructions.visible(caller),
        "refused": refused,
        "found": [{**row, "excerpt": excerpt(row["said"], text) if has_words(text) else ""} for row in found],
        "text": text,
        "meaning": services.meaning.on,
        "older": None if older is None else older.isoformat(),
        "form": form_token_of(request),
    }
    return with_cookie(request, html(request.scope, FORM, 200 if refused is None else refused.status, **values))


def excerpt(said: str, text: str) -> str:
    """What stands around the first of the words."""
    place = max(0, min((at for word in text.split() if (at := said.lower().find(word.lower())) >= 0), default=0) - 60)
    return f"{'…' if place else ''}{said[place : place + 200]}{'…' if len(said) > place + 200 else ''}"
