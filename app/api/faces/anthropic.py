"""/v1/messages: Anthropic's Messages, for its clients, on the same tickets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from app.anthropic.failures import anthropic_error
from app.anthropic.render import MessageEvents, render_message
from app.anthropic.request import CountRequest, MessageRequest, prepare_message
from app.api.dependencies import DESCRIPTIONS, IdempotencyKey, caller_of, services_of
from app.api.faces.tickets import followed, mark
from app.api.holding import CLIENT_CLOSED_REQUEST, completed, make_ticket, stream_until_final
from app.api.openai.answers import Json
from app.api.openai.documents import OF_GENERATIONS
from app.api.problems import ANTHROPIC_ID
from app.api.security import READ, WORK, GuardedRoute
from app.api.sse import event_bytes
from app.errors import AppError
from app.openai.answers import Row, model_of
from app.openai.requests import Prepared
from app.openai.tokens import encoded
from app.services.streams import Event, Following

_ERROR = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"type": "string", "enum": ["error"]},
        "error": {
            "type": "object",
            "required": ["type", "message", "code"],
            "properties": {name: {"type": "string"} for name in ("type", "message", "code")},
        },
        "request_id": {"type": "string"},
    },
}
_CONTENT = {"application/json": {"schema": _ERROR}}
_DESCRIBED = DESCRIPTIONS | {400: "Not valid, or not possible; `error.message` names the parameter"} | OF_GENERATIONS
COUNT_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": _DESCRIBED[status], "content": _CONTENT}
    for status in (400, 401, 403, 404, 413, 415, 429, 503)
}
ERRORS = COUNT_ERRORS | {
    status: {"description": _DESCRIBED.get(status, "A defect of the service"), "content": _CONTENT}
    for status in (409, 500, 502, 504)
}
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A message, or with `stream` its events",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}

router = APIRouter(prefix="/v1/messages", tags=["anthropic"], route_class=GuardedRoute)


@router.post("", dependencies=[WORK], response_class=Response, responses=ERRORS | ANSWER)
async def create_message(body: MessageRequest, request: Request, key: IdempotencyKey = None) -> Response:
    """Runs a conversation as a ticket, and holds the connection for the message or streams it."""
    prepared = await prepare_message(services_of(request), caller_of(request), body)
    row, replayed = await make_ticket(request, prepared, streamed=bool(body.stream), key=key)
    response = await (_streamed if body.stream else _held)(request, row, prepared)
    response.headers[ANTHROPIC_ID] = request.state.request_id
    return mark(response, row, prepared, replayed)


@router.post("/count_tokens", dependencies=[READ], responses=COUNT_ERRORS)
async def count_tokens(body: CountRequest, request: Request) -> dict[str, int]:
    """How many tokens the prompt of a message would have, by the tokenizer in the model's folder."""
    services = services_of(request)
    prepared = await prepare_message(services, caller_of(request), body)
    return {"input_tokens": len(await encoded(services, prepared, special=True))}


async def _held(request: Request, row: Row, prepared: Prepared) -> Response:
    final = await completed(request, row)
    if final is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Json(render_message(final, prepared.request))


async def _streamed(request: Request, row: Row, prepared: Prepared) -> Response:
    following = await services_of(request).streams.open(caller_of(request), row["id"])
    events = MessageEvents(row["id"], model_of(row, prepared.request), prepared.request)

    def told(error: AppError) -> bytes:
        return event_bytes(to_json(anthropic_error(error, request.state.request_id)), "error")

    return await stream_until_final(request, row["id"], _events(following, row, events), told)


async def _events(following: Following, row: Row, events: MessageEvents) -> AsyncGenerator[bytes]:
    """Nothing before the engine says something."""
    start = events.start()
    async for item in followed(following, row):
        if isinstance(item, Event):
            made = [event for delta in item.deltas for event in events.delta(delta)]
        else:
            made = events.end(item.row)
        if start or made:
            yield b"".join(event_bytes(to_json(event), event["type"]) for event in [*start, *made])
            start = []
