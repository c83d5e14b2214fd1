"""The stream of a comparison.

The id of an event tells how far the stream is, result by result in the order of the request: the `sequence` of the last
event, `-` for none, or `end`. `12,-,end` is one.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic_core import to_json

from app.api.dependencies import caller_of, problems, services_of
from app.api.problems import problem_document
from app.api.schemas import Result
from app.api.security import READ, GuardedRoute
from app.api.sse import EventStream, event_bytes
from app.api.streams import LARGEST_SEQUENCE, RETRY_MILLISECONDS, said_of
from app.errors import AppError, InvalidRequest
from app.services.comparison_streams import ComparisonStream, Part, Position, Signal
from app.services.streams import End, Event

ENDED, NOTHING = "end", "-"
LONGEST_CURSOR = 200

router = APIRouter(prefix="/comparisons", tags=["comparisons"], route_class=GuardedRoute, dependencies=[READ])


@router.get(
    "/{comparison_id}/stream",
    response_class=Response,
    responses={
        200: {
            "description": "`delta` events, then `completed` or `failed`, of all results",
            "content": {"text/event-stream": {}},
        },
        204: {"description": "All results have ended, as the cursor says: there is nothing more to come"},
        **problems(404, 410, 422),
    },
)
async def stream_comparison(
    comparison_id: UUID,
    request: Request,
    starting_after: Annotated[
        str | None, Query(max_length=LONGEST_CURSOR, description="go on after the event with this `id`")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(max_length=LONGEST_CURSOR, description="the same, as an EventSource sends it")
    ] = None,
) -> Response:
    """Server-sent events of all generations while they run, each with the `result_id` and `model` it belongs to."""
    services, caller = services_of(request), caller_of(request)
    row = await services.comparisons.row(caller, comparison_id)
    cursor = starting_after if last_event_id is None else last_event_id
    count = len(row["result_ids"])
    positions = [Position()] * count if cursor is None else _positions(cursor, count)
    stream = ComparisonStream(services.streams, caller, row["result_ids"])
    await stream.open(positions)
    if stream.exhausted:
        return Response(status_code=204)
    return EventStream(_render(stream, row, positions))


def _positions(cursor: str, count: int) -> list[Position]:
    words = cursor.split(",")
    if len(words) == count and all(map(_is_position, words)):
        return [Position(int(word) if word.isdigit() else None, word == ENDED) for word in words]
    message = f"is the `id` of an event of this stream: {count} entries with commas, each a number, - or end"
    raise InvalidRequest(f"Last-Event-ID: {message}", errors=[{"field": "Last-Event-ID", "message": message}])


def _is_position(word: str) -> bool:
    if word in (ENDED, NOTHING):
        return True
    return word.isascii() and word.isdigit() and len(word) <= 10 and int(word) <= LARGEST_SEQUENCE


async def _render(
    stream: ComparisonStream, row: Mapping[str, Any], positions: Sequence[Position]
) -> AsyncGenerator[bytes]:
    cursor = [ENDED if each.ended else NOTHING if each.after is None else str(each.after) for each in positions]
    # Part of the first event: on its own, some clients take it for an event without data.
    yield b"retry: %d\n" % RETRY_MILLISECONDS
    try:
        async with aclosing(stream.parts()) as parts:
            async for part in parts:
                yield _event(part, row, cursor)
    except AppError as error:
        yield event_bytes(to_json(problem_document(error)), "error")


def _event(part: Part, row: Mapping[str, Any], cursor: list[str]) -> bytes:
    """Moves the cursor along."""
    body: dict[str, Any] = {"result_id": row["result_ids"][part.place], "model": row["models"][part.place]}
    match part.item:
        case Event() as event:
            name, said = said_of(event, body["result_id"])
            cursor[part.place] = str(event.sequence)
            body |= said
        case End() as end:
            result = Result.of(end.row)
            name, cursor[part.place] = result.status.value, ENDED
            body |= {"sequence": end.sequence, "result": result.model_dump(mode="json")}
        case Signal() as signal:
            name, cursor[part.place] = signal.value, NOTHING if signal is Signal.RESTARTED else ENDED
    return event_bytes(to_json(body, inf_nan_mode="null"), name, ",".join(cursor))
