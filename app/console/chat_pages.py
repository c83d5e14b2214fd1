"""Chats: a message to a model becomes a ticket, whose answer grows on the page; then on from it, or once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.api.dependencies import caller_of, root_of, services_of
from app.api.holding import make_ticket
from app.api.security import READ, SUBMIT, WORK
from app.api.sse import EventStream
from app.console.asking import LONGEST, Text, Word, number_of, text_models
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.following import followed
from app.console.pages import page, wants_events
from app.console.render import HEADERS, html, state_of
from app.errors import AppError, ResultPending, invalid
from app.openai.chat_request import prepare_chat
from app.openai.requests import Prepared
from app.openai.tools import rendered
from app.openai.written import Written, read
from app.queue.ticket import Status
from app.services.chats import AFTER, FROM, MOST_SEARCHED, Turn, reference
from app.storable import StorableText

FORM, TEMPLATE = "chats.html", "chat.html"
SHOWN = 30
FIELDS = ("model", "message", "system", "max_tokens", "temperature", "after")

router = APIRouter(prefix=f"{PREFIX}/chat", route_class=PageRoute, include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the form of a message says."""

    message: str
    model: str
    # None keeps the instructions that it goes on with.
    system: str | None
    max_tokens: str
    temperature: str
    # The ticket whose answer it goes on from; '' begins anew.
    after: str


async def _asked(
    message: Text = "",
    model: Word = "",
    system: Annotated[str | None, Form(max_length=LONGEST)] = None,
    max_tokens: Word = "",
    temperature: Word = "",
    after: Word = "",
) -> Asked:
    return Asked(message, model, system, max_tokens, temperature, after)


AskedForm = Annotated[Asked, Depends(_asked)]


@router.get("", dependencies=[READ])
async def chats(
    request: Request,
    model: str = "",
    text: Annotated[StorableText, Query(max_length=255)] = "",
    before: datetime | None = None,
) -> Response:
    """A new chat, and those there are; `text` looks for words in them."""
    return await _chats(request, {"model": model}, text=text, before=before)


@router.post("", dependencies=[WORK])
async def begun(request: Request, asked: AskedForm) -> Response:
    """A new chat; `after` may be any ticket of a chat that has an answer."""
    services, caller = services_of(request), caller_of(request)
    chat_id = None
    try:
        prepared = await _prepared(request, asked, FROM)
        chat_id = await services.chats.create(caller, asked.message)
        row, _ = await make_ticket(request, prepared, streamed=True, client_reference=reference(chat_id))
    except AppError as error:
        if chat_id is not None:
            await services.chats.delete(caller, chat_id)
        if error.status >= 500 or error.status == 404:
            raise
        return await _chats(request, vars_of(asked), error)
    return _to(request, chat_id, row["id"])


@router.get("/{chat_id}", dependencies=[READ])
async def chat(request: Request, chat_id: UUID, at: UUID | None = None) -> Response:
    """The chat by way of the ticket `at`, or of its newest one."""

    async def gather() -> dict[str, Any]:
        return await _shown(request, chat_id, at, {})

    if wants_events(request):
        values = await gather()
        return EventStream(followed(request, TEMPLATE, values["leaf"], gather))
    return await page(request, TEMPLATE, gather)


@router.post("/{chat_id}", dependencies=[WORK])
async def sent(request: Request, chat_id: UUID, asked: AskedForm, at: Word = "") -> Response:
    """The next message, or an edited one, which goes on from where the one before it did."""
    services, caller = services_of(request), caller_of(request)
    await services.chats.get(caller, chat_id)
    try:
        inside = any(
            str(turn.id) == asked.after for turn in await services.chats.path(caller, chat_id, _uuid(asked.after))
        )
        prepared = await _prepared(request, asked, AFTER if inside else FROM)
        row, _ = await make_ticket(request, prepared, streamed=True, client_reference=reference(chat_id))
    except AppError as error:
        if error.status >= 500 or error.status == 404:
            raise
        values = await _shown(request, chat_id, _uuid(at), vars_of(asked), error)
        shown = html(request.scope, TEMPLATE, error.status, form=form_token_of(request), **values)
        return with_cookie(request, shown)
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


def vars_of(asked: Asked) -> dict[str, str]:
    return {name: getattr(asked, name) or "" for name in FIELDS}


def _to(request: Request, chat_id: UUID, at: UUID | None = None) -> Response:
    place = "" if at is None else f"?at={at}#leaf"
    return RedirectResponse(f"{root_of(request)}{PREFIX}/chat/{chat_id}{place}", 303, HEADERS)


async def _of_chat(request: Request, chat_id: UUID, turn: str) -> UUID:
    """The id of a ticket of the chat; raises InvalidRequest, or ChatNotFound."""
    services, caller = services_of(request), caller_of(request)
    await services.chats.get(caller, chat_id)
    result_id = _uuid(turn)
    if result_id is None or result_id not in {
        each.id for each in await services.chats.path(caller, chat_id, result_id)
    }:
        raise invalid("turn", "is the id of a ticket of this chat")
    return result_id


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


async def _prepared(request: Request, asked: Asked, link: str) -> Prepared:
    """The message with the chat before it, as a ticket whose prompt says by `link` what it goes on from.

    Raises:
        AppError: whatever is wrong with it.
    """
    services, caller = services_of(request), caller_of(request)
    messages = await _said_before(request, asked.after) if asked.after else []
    if not asked.message.strip():
        raise invalid("message", "write what you want to ask")
    if asked.system is not None:
        messages = messages[1:] if messages and _is_system(messages[0]) else messages
        if asked.system.strip():
            messages.insert(0, {"role": "system", "content": asked.system})
    messages.append({"role": "user", "content": asked.message})
    body: dict[str, Any] = {"model": asked.model, "messages": messages}
    if asked.after:
        body["metadata"] = {link: asked.after}
    for name, text, kind in (("max_tokens", asked.max_tokens, int), ("temperature", asked.temperature, float)):
        if text.strip():
            body[name] = number_of(name, text, kind)
    return await prepare_chat(services, caller, body)


async def _said_before(request: Request, id_: str) -> list[dict[str, Any]]:
    """The chat of a ticket with its answer."""
    result_id = _uuid(id_)
    if result_id is None:
        raise invalid("after", "is the id of a ticket, a UUID")
    services, caller = services_of(request), caller_of(request)
    row = await services.results.get(caller, result_id)
    prompt = await services.contexts.get(caller, row["context_id"])
    if prompt["messages"] is None:
        raise invalid("after", "names a ticket that is no chat")
    if row["status"] == Status.PENDING:
        raise ResultPending(
            "The answer is still being written: wait for its end or stop it, then send the next message."
        )
    if not row["output"]:
        raise invalid("after", "has no answer to go on from: ask for it again, or edit its message")
    written = _written(row)
    answer: dict[str, Any] = {"role": "assistant", "content": written.content}
    if written.calls:
        answer["tool_calls"] = rendered(written.calls, result_id, 0)
    return [*prompt["messages"], answer]


def _is_system(message: Mapping[str, Any]) -> bool:
    return message["role"] in ("system", "developer")


def _written(row: Mapping[str, Any]) -> Written:
    return read(row["output"] or "", row["request"] or {})


async def _chats(
    request: Request,
    given: Mapping[str, str],
    refused: AppError | None = None,
    *,
    text: str = "",
    before: datetime | None = None,
) -> Response:
    services, caller = services_of(request), caller_of(request)
    if text.split():
        found = await services.chats.search(caller, text, SHOWN)
    else:
        found = await services.chats.newest(caller, SHOWN, before)
    values = {
        "given": dict.fromkeys(FIELDS, "") | dict(given),
        "longest": LONGEST,
        "models": await text_models(request),
        "refused": refused,
        "found": [{**row, "excerpt": excerpt(row["said"], text) if text.split() else ""} for row in found],
        "text": text,
        "searched": MOST_SEARCHED,
        "older": found[-1]["used_at"].isoformat() if len(found) == SHOWN and not text.split() else None,
        "form": form_token_of(request),
    }
    return with_cookie(request, html(request.scope, FORM, 200 if refused is None else refused.status, **values))


def excerpt(said: str, text: str) -> str:
    """What stands around the first of the words."""
    place = max(0, min((at for word in text.split() if (at := said.lower().find(word.lower())) >= 0), default=0) - 60)
    return f"{'…' if place else ''}{said[place : place + 200]}{'…' if len(said) > place + 200 else ''}"


async def _shown(
    request: Request, chat_id: UUID, at: UUID | None, given: Mapping[str, str], refused: AppError | None = None
) -> dict[str, Any]:
    services, caller = services_of(request), caller_of(request)
    row = await services.chats.get(caller, chat_id)
    path = await services.chats.path(caller, chat_id, at)
    rows = await services.chats.turns(caller, [turn.id for turn in path])
    turns = [_turn(turn, rows[turn.id], turn is path[-1]) for turn in path if turn.id in rows]
    leaf = turns[-1] if turns else None
    before = leaf["row"] if leaf else {}
    asked = before.get("request") or {}
    first = before.get("first")
    # What was typed where it was refused, else as the last message was sent.
    same = {
        "model": before.get("model", ""),
        "message": "",
        "system": _text(first) if first and _is_system(first) else "",
        "max_tokens": _shown_number(asked.get("max_tokens")),
        "temperature": _shown_number(asked.get("temperature")),
        "after": str(before.get("id", "")),
    }
    return {
        "row": row,
        "turns": turns,
        "leaf": leaf and leaf["id"],
        "final": leaf is None or leaf["final"],
        "begun": _begun(turns),
        "models": await text_models(request),
        "longest": LONGEST,
        "given": same | dict(given),
        # A refused edit is shown in the form at the end, which says of which message it is another one.
        "edited": bool(given) and given["after"] != same["after"],
        "same": same,
        "refused": refused,
        "others": await services.chats.newest(caller, SHOWN),
    }


def _turn(turn: Turn, row: Mapping[str, Any], last: bool) -> dict[str, Any]:
    place = turn.siblings.index(turn.id)
    final = Status(row["status"]).final
    return {
        "key": turn.id.hex,
        "id": turn.id,
        "row": row,
        "last": last,
        "state": state_of(row),
        "final": final,
        "written": _written(row) if final and row["output"] is not None else None,
        "said": parts_of(row["said"]) if row["said"] else [],
        "text": _text(row["said"]) if row["said"] else "",
        "after": turn.after or (row["metadata"] or {}).get(FROM, ""),
        "place": place + 1,
        "of": len(turn.siblings),
        "before": turn.siblings[place - 1] if place else None,
        "next": turn.siblings[place + 1] if place + 1 < len(turn.siblings) else None,
    }


def _begun(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What stands before the first message of the chat, where it goes on from a ticket that is elsewhere."""
    messages = turns[0]["row"]["begun"] if turns else None
    return [{"role": each["role"], "parts": parts_of(each)} for each in (messages or [])[:-1]]


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Texts as `text`, images that came along as `image`, and of anything else the `kind`."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"text": content}]
    made = []
    for part in content or []:
        url = (part.get("image_url") or {}).get("url") if isinstance(part.get("image_url"), dict) else None
        if isinstance(part.get("text"), str):
            made.append({"text": part["text"]})
        elif isinstance(url, str) and url.startswith("data:image/"):
            made.append({"image": url})
        else:
            made.append({"kind": str(part.get("type"))})
    return made


def _text(message: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in parts_of(message) if "text" in part)


def _shown_number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
