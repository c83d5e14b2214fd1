"""A ticket sent again with changes: a form with its model, parameters and texts, which makes another ticket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic_core import to_json
from starlette.datastructures import FormData

from app.api.dependencies import caller_of, root_of, services_of
from app.api.holding import make_ticket
from app.api.security import SUBMIT, WORK
from app.console.asking import LONGEST, faults_of, number_of
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.render import HEADERS, html
from app.errors import AppError, InvalidRequest, LineDefective, ModelNotFound, NoChatTemplate, invalid
from app.key_errors import ModelNotAllowed
from app.openai.chat_request import ChatRequest, prepare_chat
from app.openai.completions import KIND as COMPLETION
from app.openai.completions import CompletionRequest, prepare_completion
from app.openai.rendering import asked_of
from app.openai.requests import GenerationRequest, Prepared
from app.openai.responses_request import KIND as RESPONSE
from app.prompts.adapters import Chosen
from app.services.chats import AFTER, FROM, chat_of
from app.storable import parsed_json
from app.tasks.generate import GENERATE

TEMPLATE = "changed_ticket.html"
# In the metadata of a prompt: the ticket that it was changed from.
CHANGED_FROM = "changed_from"
NUMBERS: Mapping[str, tuple[str, type[int] | type[float]]] = {
    "max_tokens": ("Most tokens", int),
    "temperature": ("Temperature", float),
    "top_p": ("Top p", float),
    "seed": ("Seed", int),
}
# What a ticket has of its own, or what the form has fields for.
NOT_PARAMETERS = {
    *("model", "messages", "prompt", "metadata", "stream", "stream_options", "webhook", "request_id", "store"),
    "max_completion_tokens",
}
# Of one form; a browser sends each text as a field.
MOST_TEXTS = 500

router = APIRouter(prefix=f"{PREFIX}/tickets", route_class=PageRoute, include_in_schema=False)

Row = Mapping[str, Any]


def changeable(row: Row, prompt: Row) -> bool:
    """Whether it asked for a text, and what it asked with is kept."""
    texts = prompt["messages"] is not None or prompt["content"] is not None
    return bool(texts and row["kept"] and row["task"] == GENERATE and row["error_code"] != LineDefective.code)


@router.get("/{result_id}/change", dependencies=[SUBMIT])
async def form(request: Request, result_id: UUID) -> Response:
    row, prompt = await _changeable(request, result_id)
    asked = _asked(row, prompt)
    given = {name: str(asked.pop(name, "")) for name in NUMBERS}
    more = to_json(asked, indent=2).decode() if asked else ""
    given |= {"model": Chosen(row["model"], row["parameters"].get("lora_name")).qualified, "more": more}
    return await _page(request, row, prompt, given, [place[key] for _, place, key in _places(_said(prompt))])


@router.post("/{result_id}/change", dependencies=[WORK])
async def send(request: Request, result_id: UUID) -> Response:
    row, prompt = await _changeable(request, result_id)
    typed = await request.form()
    given = {name: _text(typed, name) for name in ("model", "more", *NUMBERS)}
    texts = [text for text in typed.getlist("text") if isinstance(text, str)]
    try:
        prepared = await _prepared(request, row, prompt, given, texts)
        new, _ = await make_ticket(request, prepared, streamed=True, priority=row["priority"])
    except AppError as error:
        if error.status >= 500 or not (faults := _faults(error)):
            raise
        return await _page(request, row, prompt, given, texts, error, faults)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/tickets/{new['id']}", 303, HEADERS)


async def _changeable(request: Request, id_: UUID) -> tuple[Row, Row]:
    """The ticket and its prompt; raises InvalidRequest where they cannot be changed in a form."""
    services, caller = services_of(request), caller_of(request)
    row = await services.results.get(caller, id_)
    prompt = await services.contexts.get(caller, row["context_id"])
    if not changeable(row, prompt):
        raise invalid("", "Only what asked for a text, and is kept, can be sent again with changes.")
    texts = [place[key] for _, place, key in _places(_said(prompt))]
    if len(texts) > MOST_TEXTS or sum(map(len, texts)) > LONGEST:
        raise invalid(
            "", f"A form holds {MOST_TEXTS} messages of {LONGEST:,} characters together: send this by the API."
        )
    return row, prompt


def _said(prompt: Row) -> list[dict[str, Any]]:
    """The messages, or the text as one."""
    if prompt["messages"] is None:
        return [{"role": "prompt", "content": prompt["content"]}]
    return deepcopy(list(prompt["messages"]))


def _places(messages: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Each text: its message, what holds it, and by which name."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield message, message, "content"
        for part in content if isinstance(content, list) else ():
            if isinstance(part.get("text"), str):
                yield message, part, "text"


def _asked(row: Row, prompt: Row) -> dict[str, Any]:
    """The parameters as /v1/chat/completions, or for a text /v1/completions, has them."""
    face = CompletionRequest if prompt["messages"] is None else ChatRequest
    kind, request = row["kind"], row["request"] or {}
    if face is ChatRequest and kind is not None:
        asked = dict(request)
        if kind == RESPONSE:
            # What a response calls otherwise comes with `asked_of`.
            asked = {name: request[name] for name in GenerationRequest.model_fields if name in request}
        asked |= asked_of(kind, request)
    elif kind == COMPLETION:
        asked = dict(request)
    else:
        asked = dict(row["parameters"])
        if face is ChatRequest and (alternatives := asked.pop("logprobs", None)) is not None:
            asked |= {"logprobs": True, "top_logprobs": alternatives}
    if "max_tokens" not in asked and "max_completion_tokens" in asked:
        asked["max_tokens"] = asked["max_completion_tokens"]
    known = face.model_fields.keys() - NOT_PARAMETERS
    return {name: value for name, value in asked.items() if name in known and value is not None}


async def _prepared(
    request: Request, row: Row, prompt: Row, given: Mapping[str, str], texts: Sequence[str]
) -> Prepared:
    """Raises AppError: whatever is wrong with it."""
    services, caller = services_of(request), caller_of(request)
    body = _more(given["more"]) | {"model": given["model"].strip()}
    if not body["model"]:
        raise invalid("model", "is required")
    for name, (_, kind) in NUMBERS.items():
        if given[name].strip():
            body[name] = number_of(name, given[name], kind)
    messages = _changed(prompt, texts)
    if not messages:
        raise invalid("text", "write what you want to ask")
    if prompt["messages"] is None:
        prepared = await prepare_completion(services, caller, body | {"prompt": messages[0]["content"]})
    else:
        prepared = await prepare_chat(services, caller, body | {"messages": messages})
    # The answer of a chat is one of its versions; this is none.
    dropped = {AFTER, FROM} if chat_of(row["client_reference"]) else set()
    metadata = {name: value for name, value in (prompt["metadata"] or {}).items() if name not in dropped}
    metadata[CHANGED_FROM] = str(row["id"])
    return replace(prepared, prompt=replace(prepared.prompt, metadata=metadata))


def _more(text: str) -> dict[str, Any]:
    """The other parameters; raises InvalidRequest."""
    if not text.strip():
        return {}
    try:
        found = parsed_json(text.encode())
    except ValueError as error:
        raise invalid("more", f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise invalid("more", 'is a JSON object, like {"stop": ["END"]}')
    if own := [name for name in found if name in NUMBERS or name in NOT_PARAMETERS]:
        raise invalid("more", f"{own[0]!r} does not belong here: leave it out")
    return found


def _changed(prompt: Row, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The messages with these texts, those left out that were emptied; raises InvalidRequest."""
    messages = _said(prompt)
    places = list(_places(messages))
    if len(places) != len(texts):
        raise invalid("text", "the form has not the texts of this ticket: load the page again")
    emptied = set()
    for (_, place, key), text in zip(places, texts, strict=True):
        # A browser sends every end of a line as two characters.
        if _lines(text) != _lines(place[key]):
            place[key] = _lines(text)
            if not text.strip():
                emptied.add(id(place))
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = [part for part in content if id(part) not in emptied]
            if content and not message["content"]:
                emptied.add(id(message))
    return [message for message in messages if id(message) not in emptied or message.get("tool_calls")]


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value[:LONGEST] if isinstance(value, str) else ""


def _faults(error: AppError) -> dict[str, str]:
    """What is wrong, by the field of the form; empty where it is with none of them."""
    if isinstance(error, ModelNotFound | ModelNotAllowed | NoChatTemplate):
        return {"model": error.detail}
    if not isinstance(error, InvalidRequest):
        return {}
    names = {"messages": "text", "prompt": "text"} | {name: name for name in ("model", "text", *NUMBERS)}
    return faults_of(error, names, "more")


async def _page(
    request: Request,
    row: Row,
    prompt: Row,
    given: Mapping[str, str],
    texts: Sequence[str],
    refused: AppError | None = None,
    faults: Mapping[str, str] | None = None,
) -> Response:
    services, caller = services_of(request), caller_of(request)
    said = _said(prompt)
    others = [part["type"] for each in said if isinstance(each.get("content"), list) for part in each["content"]]
    values = {
        "row": row,
        "given": given,
        "numbers": {name: label for name, (label, _) in NUMBERS.items()},
        "said": [(message["role"], text) for (message, _, _), text in zip(_places(said), texts, strict=False)],
        "kept": sorted(set(others) - {"text"}) + (["tool calls"] if any("tool_calls" in each for each in said) else []),
        "models": sorted(name for name in await services.catalog.names() if caller.sees(name)),
        "longest": LONGEST,
        "refused": refused,
        "faults": faults or {},
        "form": form_token_of(request),
    }
    status = 200 if refused is None else refused.status
    return with_cookie(request, html(request.scope, TEMPLATE, status, **values))
