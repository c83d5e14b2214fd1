"""/tgi: the routes of Text Generation Inference, for its clients, on the same tickets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from app.api.dependencies import caller_of, services_of
from app.api.faces.tgi_render import StreamTokens, render, tgi_error
from app.api.faces.tgi_request import MAX_TOP_TOKENS, CompatibleRequest, GenerateRequest, prepare
from app.api.faces.tickets import followed, mark
from app.api.health import short_health
from app.api.holding import CLIENT_CLOSED_REQUEST, completed, make_ticket, stream_until_final
from app.api.openai.answers import Json
from app.api.security import OPEN, READ, WORK, GuardedRoute
from app.api.sse import event_bytes
from app.errors import AppError
from app.openai.answers import Row
from app.openai.default_model import model_or_default
from app.openai.requests import Prepared
from app.services.streams import Event, Following
from app.tasks.generate import MAX_CHOICES, MAX_STOP_STRINGS

ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
_CONTENT = {"application/json": {"schema": ERROR}}
_STATUSES = {
    400: "The body is not JSON",
    401: "No valid API key",
    403: "The API key lacks the scope, or is not for this model",
    404: "No such model",
    409: "It was cancelled",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    422: "Not valid; `error` names the field",
    424: "The generation failed",
    429: "A limit of the API key is reached; nothing was stored",
    503: "Postgres cannot serve requests now, or this process stops; the message says what was stored",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": _CONTENT} for status, text in _STATUSES.items()
}
OBJECT = {"schema": {"type": "object"}}
GENERATED: dict[int | str, dict[str, Any]] = {
    200: {"description": "`generated_text`, with `details` where asked for", "content": {"application/json": OBJECT}}
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events, one for each token", "content": {"text/event-stream": {}}}
}
EITHER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A list of one answer, or with `stream` its tokens as server-sent events",
        "content": {"application/json": {"schema": {"type": "array"}}, "text/event-stream": {}},
    }
}

router = APIRouter(prefix="/tgi", tags=["tgi"], route_class=GuardedRoute)


@router.post("/generate", dependencies=[WORK], response_class=Response, responses=ERRORS | GENERATED)
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Runs a prompt as a ticket and holds the connection for its text."""
    return await _held(request, body, listed=False)


@router.post("/generate_stream", dependencies=[WORK], response_class=Response, responses=ERRORS | STREAMED)
async def generate_stream(body: GenerateRequest, request: Request) -> Response:
    """Runs a prompt as a ticket and streams its tokens."""
    return await _streamed(request, body)


# Clients take the base URL as it stands, or with a slash.
@router.post("", dependencies=[WORK], response_class=Response, responses=ERRORS | EITHER)
@router.post("/", dependencies=[WORK], response_class=Response, responses=ERRORS | EITHER)
async def generate_or_stream(body: CompatibleRequest, request: Request) -> Response:
    """Either of them, by `stream`: what TGI's own root does."""
    return await (_streamed(request, body) if body.stream else _held(request, body, listed=True))


@router.get("/info", dependencies=[READ], responses={status: ERRORS[status] for status in (401, 403, 422, 429, 503)})
async def info(request: Request) -> dict[str, Any]:
    """The model that answers requests which name none, and this service's limits."""
    services = services_of(request)
    model = await model_or_default(services, caller_of(request), None)
    return {
        "model_id": model,
        "max_best_of": MAX_CHOICES,
        "max_stop_sequences": MAX_STOP_STRINGS,
        "max_top_n_tokens": MAX_TOP_TOKENS,
        "max_total_tokens": services.profiles.of(model).max_model_len,
        "router": "triton-tickets",
        "version": request.app.version,
    }


@router.get("/health", dependencies=[OPEN], response_class=Response, responses={503: {"description": "Not ready"}})
async def health(request: Request) -> Response:
    """200 with no body when ready, else 503."""
    return await short_health(request)


async def _prepared(request: Request, body: GenerateRequest, *, stream: bool) -> Prepared:
    services, caller = services_of(request), caller_of(request)
    model = await model_or_default(services, caller, body.model)
    return await prepare(services, caller, body, model, stream=stream)


async def _held(request: Request, body: GenerateRequest, *, listed: bool) -> Response:
    prepared = await _prepared(request, body, stream=False)
    row, _ = await make_ticket(request, prepared)
    final = await completed(request, row)
    if final is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    answer = render(final, prepared.request)
    return mark(Json([answer] if listed else answer), row, prepared)


async def _streamed(request: Request, body: GenerateRequest) -> Response:
    prepared = await _prepared(request, body, stream=True)
    row, _ = await make_ticket(request, prepared, streamed=True)
    following = await services_of(request).streams.open(caller_of(request), row["id"])
    events = _events(following, row, StreamTokens(prepared.request))
    return mark(await stream_until_final(request, row["id"], events, _error_event), row, prepared)


async def _events(following: Following, row: Row, tokens: StreamTokens) -> AsyncGenerator[bytes]:
    async for item in followed(following, row):
        if isinstance(item, Event):
            made = [event for delta in item.deltas for event in tokens.delta(delta)]
            if made:
                yield b"".join(event_bytes(to_json(event)) for event in made)
        else:
            yield event_bytes(to_json(tokens.end(item.row)))


def _error_event(error: AppError) -> bytes:
    return event_bytes(to_json(tgi_error(error)))
