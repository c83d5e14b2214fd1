"""POST /v1/completions, and the same answer again by its id."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.api.dependencies import IdempotencyKey, caller_of, services_of
from app.api.openai.answers import Cursor, look_up, submit, submit_several
from app.api.openai.documents import ANSWERS, STREAM_OR_JSON
from app.api.security import READ, WORK, GuardedRoute
from app.openai.answers import StreamUsage
from app.openai.completions import FACE, CompletionRequest, merged, prepare_completions

router = APIRouter(prefix="/v1/completions", tags=["openai"], route_class=GuardedRoute)


@router.post("", dependencies=[WORK], response_class=Response, responses=ANSWERS | STREAM_OR_JSON)
async def create_completion(body: CompletionRequest, request: Request, key: IdempotencyKey = None) -> Response:
    """Runs a prompt as a ticket, and holds the connection for the answer or streams it."""
    prepared, *more = await prepare_completions(services_of(request), caller_of(request), body)
    if more:
        several = [prepared, *more]
        return await submit_several(
            request, FACE, several, key, merged, stream=bool(body.stream), usage=body.stream_usage
        )
    return await submit(request, FACE, prepared, key, stream=bool(body.stream), usage=body.stream_usage)


@router.get("/{completion_id}", dependencies=[READ], response_class=Response, responses=ANSWERS | STREAM_OR_JSON)
async def get_completion(
    completion_id: str,
    request: Request,
    stream: bool = False,
    include_usage: bool = False,
    after: Cursor = None,
) -> Response:
    """The answer to an earlier request; with `stream`, its stream, on from an event where that is given."""
    return await look_up(request, FACE, completion_id, stream=stream, after=after, usage=StreamUsage(include_usage))
