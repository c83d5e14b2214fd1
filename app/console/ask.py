"""Asking a model: a chat becomes a ticket, whose page shows the answer as it grows, and goes on from it."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from app.api.dependencies import caller_of, root_of, services_of
from app.api.holding import make_ticket
from app.api.security import SUBMIT, WORK
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.render import HEADERS, html
from app.errors import AppError, invalid
from app.openai.chat_request import prepare_chat
from app.queue.ticket import Status
from app.services.catalog import CatalogEntry

REFERENCE = "console"
LONGEST = 1_000_000

router = APIRouter(prefix=PREFIX, route_class=PageRoute, include_in_schema=False)

Text = Annotated[str, Form(max_length=LONGEST)]
Word = Annotated[str, Form(max_length=255)]


@router.get("/ask", dependencies=[SUBMIT])
async def ask(request: Request, model: str = "") -> Response:
    return await _form(request, {"model": model})


@router.post("/ask", dependencies=[WORK])
async def asked(
    request: Request,
    model: Word = "",
    message: Text = "",
    system: Text = "",
    max_tokens: Word = "",
    temperature: Word = "",
    follows: Word = "",
) -> Response:
    given = {
        "model": model,
        "message": message,
        "system": system,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "follows": follows,
    }
    try:
        messages = await _said_before(request, follows) if follows else []
        if system.strip() and not messages:
            messages.append({"role": "system", "content": system})
        if not message.strip():
            raise invalid("message", "write what you want to ask")
        messages.append({"role": "user", "content": message})
        body: dict[str, Any] = {"model": model, "messages": messages}
        for name, text, kind in (("max_tokens", max_tokens, int), ("temperature", temperature, float)):
            if text.strip():
                body[name] = number_of(name, text, kind)
        services, caller = services_of(request), caller_of(request)
        prepared = await prepare_chat(services, caller, body)
        row, _ = await make_ticket(request, prepared, streamed=True, client_reference=REFERENCE)
    except AppError as error:
        if error.status >= 500:
            raise
        return await _form(request, given, error)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/tickets/{row['id']}#answer", 303, HEADERS)


async def _form(request: Request, given: dict[str, str], refused: AppError | None = None) -> Response:
    empty = dict.fromkeys(("model", "message", "system", "max_tokens", "temperature", "follows"), "")
    values = {
        "models": await text_models(request),
        "given": empty | given,
        "refused": refused,
        "form": form_token_of(request),
    }
    status = 200 if refused is None else refused.status
    return with_cookie(request, html(request.scope, "ask.html", status, **values))


async def text_models(request: Request) -> list[CatalogEntry]:
    """Those that chat, as far as it is known, and that the caller may use."""
    services, caller = services_of(request), caller_of(request)
    entries = [entry for entry in await services.catalog.models() if caller.sees(entry.name)]
    able = {entry.name: services.profiles.of(entry.name).capabilities for entry in entries}
    return [entry for entry in entries if (can := able[entry.name]) is None or can.chat]


async def _said_before(request: Request, id_: str) -> list[dict[str, Any]]:
    """The chat of a completed ticket, its answer included."""
    try:
        result_id = UUID(id_)
    except ValueError:
        raise invalid("follows", "is the id of a ticket, a UUID") from None
    services, caller = services_of(request), caller_of(request)
    row = await services.results.get(caller, result_id)
    prompt = await services.contexts.get(caller, row["context_id"])
    if prompt["messages"] is None or row["status"] != Status.COMPLETED:
        raise invalid("follows", "names a ticket that is no chat, or has no answer yet")
    return [*prompt["messages"], {"role": "assistant", "content": row["output"] or ""}]


def number_of(name: str, text: str, kind: type[int] | type[float]) -> float:
    """Raises InvalidRequest, naming the field."""
    try:
        return kind(text.strip())
    except ValueError:
        raise invalid(name, f"{text[:20]!r} is no {'whole number' if kind is int else 'number'}") from None
