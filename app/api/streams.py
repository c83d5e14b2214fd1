from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import fields
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic_core import to_json

from app.api.dependencies import caller_of, problems, services_of
from app.api.problems import problem_document
from app.api.schemas import OutputTensor, Result
from app.api.security import READ, GuardedRoute
from app.api.sse import EventStream, event_bytes
from app.errors import AppError, InvalidRequest
from app.services.streams import Delta, End, Event, Following

RETRY_MILLISECONDS = 1000
LARGEST_SEQUENCE = 2**31 - 1
DELTA_FIELDS = [field.name for field in fields(Delta)]

router = APIRouter(prefix="/results", tags=["results"], route_class=GuardedRoute, dependencies=[READ])


@router.get(
    "/{result_id}/stream",
    response_class=Response,
    responses={
        200: {
            "description": "`delta` events, or `outputs` of a model that takes tensors, then `completed` or `failed`",
            "content": {"text/event-stream": {}},
        },
        204: {"description": "The cursor is the last event: there is nothing more to come"},
        **problems(404, 410, 422),
    },
)
async def stream_result(
    result_id: UUID,
    request: Request,
    starting_after: Annotated[
        int | None, Query(ge=0, le=LARGEST_SEQUENCE, description="go on after the event with this `sequence`")
    ] = None,
    last_event_id: Annotated[str | None, Header(description="the same, as an EventSource sends it")] = None,
) -> Response:
    """Server-sent events while it runs: text or tensors as they come, at last the result as `GET` gives it."""
    after = starting_after if last_event_id is None else _sequence(last_event_id)
    following = await services_of(request).streams.open(caller_of(request), result_id, after)
    if following.exhausted:
        return Response(status_code=204)
    return EventStream(_render(following))


def _sequence(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= LARGEST_SEQUENCE:
        return int(text)
    message = "is the `id` of an event, a number"
    raise InvalidRequest(f"Last-Event-ID: {message}", errors=[{"field": "Last-Event-ID", "message": message}])


async def _render(following: Following) -> AsyncGenerator[bytes, None]:
    # Part of the first event: on its own, some clients take it for an event without data.
    yield b"retry: %d\n" % RETRY_MILLISECONDS
    try:
        async with aclosing(following.events()) as events:
            async for item in events:
                yield _event(item, following.channel.id) if isinstance(item, Event) else _end(item)
    except AppError as error:
        yield event_bytes(to_json(problem_document(error)), "error")


def _event(event: Event, result_id: UUID) -> bytes:
    name, body = said_of(event, result_id)
    return event_bytes(to_json(body, inf_nan_mode="null"), name, event.sequence)


def said_of(event: Event, result_id: UUID) -> tuple[str, dict[str, Any]]:
    """The name of an event and what it tells."""
    if event.added.outputs:
        outputs = [OutputTensor.of(result_id, output).model_dump(mode="json") for output in event.added.outputs]
        return "outputs", {"sequence": event.sequence, "outputs": outputs}
    deltas = [
        {name: value for name in DELTA_FIELDS if (value := getattr(delta, name)) is not None} for delta in event.deltas
    ]
    return "delta", {"sequence": event.sequence, "deltas": deltas}


def _end(end: End) -> bytes:
    result = Result.of(end.row)
    return event_bytes(result.__pydantic_serializer__.to_json(result), result.status.value, end.sequence)
