"""POST /v1/chat/completions, and the same answer again by its id."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.api.dependencies import IdempotencyKey, caller_of, services_of
from app.api.openai.answers import Cursor, look_up, submit
from app.api.openai.documents import ANSWERS, STREAM_OR_JSON
from app.api.security import READ, WORK, GuardedRoute
from app.openai.answers import StreamUsage
from app.openai.chat_render import FACE
from app.openai.chat_request import ChatRequest, prepare_chat

router = APIRouter(prefix="/v1/chat/completions", tags=["openai"], route_class=GuardedRoute)


@router.post("", dependencies=[WORK], response_class=Response, responses=ANSWERS | STREAM_OR_JSON)
async def create_chat_completion(
    body: ChatRequest,
    request: Request,
    key: IdempotencyKey = None,
) -> Response:
    """Runs a chat as a ticket, and holds the connection for the answer or streams it."""
    prepared = await prepare_chat(services_of(request), caller_of(request), body)
    return await submit(request, FACE, prepared, key, stream=bool(body.stream), usage=body.stream_usage)


@router.get("/{completion_id}", dependencies=[READ], response_class=Response, responses=ANSWERS | STREAM_OR_JSON)
async def get_chat_completion(
    completion_id: str,
    request: Request,
    stream: bool = False,
    include_usage: bool = False,
    after: Cursor = None,
) -> Response:
    """The answer to an earlier request; with `stream`, its stream, on from an event where that is given."""
    return await look_up(request, FACE, completion_id, stream=stream, after=after, usage=StreamUsage(include_usage))
