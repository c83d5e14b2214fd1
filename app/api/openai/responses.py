"""/v1/responses: OpenAI's stateful face of the same tickets."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response

from app.api.dependencies import IdempotencyKey, caller_of, services_of
from app.api.holding import CLIENT_CLOSED_REQUEST, cancel_if_asked, make_ticket
from app.api.openai.answers import Json, forget_after, forget_at_end, hold, mark, stopping
from app.api.openai.documents import ANSWERS, OBJECT, STREAM_OR_JSON
from app.api.openai.sse import response_events
from app.api.security import READ, SUBMIT, WORK, GuardedRoute
from app.api.sse import EventStream
from app.errors import NotFound, ResultNotFound, ResultPending, invalid
from app.openai.answers import Row, model_of
from app.openai.ids import uuid_of
from app.openai.responses_input import items_of, spoken
from app.openai.responses_prepare import prepare_response
from app.openai.responses_render import FACE, render_response
from app.openai.responses_request import KIND, ResponseRequest
from app.openai.responses_stream import BEFORE_TEXT, ResponseEvents
from app.openai.tokens import input_tokens
from app.queue.ticket import Status

# How long a cancel waits for the engine to stop.
CANCEL_SECONDS = 10.0

router = APIRouter(prefix="/v1/responses", tags=["openai"], route_class=GuardedRoute)


@router.post("", dependencies=[WORK], response_class=Response, responses=ANSWERS | STREAM_OR_JSON)
async def create_response(body: ResponseRequest, request: Request, key: IdempotencyKey = None) -> Response:
    """Makes a ticket, and answers with its end, with its stream, or at once where it runs in the background."""
    services, caller = services_of(request), caller_of(request)
    prepared = await prepare_response(services, caller, body)
    row, replayed = await make_ticket(request, prepared, key, streamed=bool(body.stream), priority=prepared.priority)
    response: Response
    if body.stream:
        response = await _streamed(request, row, prepared.request, None)
    elif body.background:
        response = Json(render_response(row, prepared.request))
    else:
        final = await hold(request, FACE, row["id"], repeatable=key is not None, kept=prepared.kept)
        if final is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        response = Json(render_response(final, prepared.request))
        forget_after(request, response, [final])
    mark(response, prepared, replayed)
    return response


@router.post("/input_tokens", dependencies=[READ], response_class=Response, responses=ANSWERS | OBJECT)
async def count_input_tokens(body: ResponseRequest, request: Request) -> Response:
    """How many tokens a response would read; nothing is stored."""
    count = await input_tokens(services_of(request), caller_of(request), body)
    return Json({"object": "response.input_tokens", "input_tokens": count})


@router.get("/{response_id}", dependencies=[READ], response_class=Response, responses=ANSWERS | STREAM_OR_JSON)
async def get_response(
    response_id: str,
    request: Request,
    stream: bool = False,
    starting_after: Annotated[
        int | None, Query(ge=0, lt=2**31, description="go on after the event with this `sequence_number`")
    ] = None,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31, description="the same")] = None,
) -> Response:
    """A response as it stands; with `stream`, its events, from the start or on from one of them."""
    row = await _find(request, response_id)
    if stream:
        return await _streamed(
            request, row, row["request"], last_event_id if starting_after is None else starting_after
        )
    if starting_after is not None:
        raise invalid("starting_after", "is for stream=true")
    return Json(render_response(row, row["request"]))


@router.post("/{response_id}/cancel", dependencies=[SUBMIT], response_class=Response, responses=ANSWERS | OBJECT)
async def cancel_response(response_id: str, request: Request) -> Response:
    """Cancels a response, made in the background or not; one that has ended is returned as it is."""
    services, caller = services_of(request), caller_of(request)
    row = await _find(request, response_id)
    if not Status(row["status"]).final:
        row = await services.results.cancel(caller, row["id"])
        row = await services.results.wait(caller, row["id"], CANCEL_SECONDS, request.is_disconnected)
    return Json(render_response(row, row["request"]))


@router.delete("/{response_id}", dependencies=[SUBMIT], response_class=Response, responses=ANSWERS | OBJECT)
async def delete_response(response_id: str, request: Request) -> Response:
    """Removes a response that has ended from the history, with its prompt; later responses keep what they took."""
    row = await _find(request, response_id)
    if not Status(row["status"]).final:
        raise ResultPending(f"{response_id} has not ended: cancel it or wait for its end, then delete it.")
    if row["conversation_id"] is not None:
        await services_of(request).conversations.catch_up_with(row["conversation_id"])
    await services_of(request).contexts.delete_result(caller_of(request), row["id"])
    return Json({"id": response_id, "object": KIND, "deleted": True})


@router.get("/{response_id}/input_items", dependencies=[READ], response_class=Response, responses=ANSWERS | OBJECT)
async def list_input_items(
    response_id: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(description="the last id of the page before")] = None,
) -> Response:
    """What went into a response, that of the responses before it too; newest first."""
    row = await _find(request, response_id)
    context = await services_of(request).contexts.get(caller_of(request), row["context_id"])
    items = items_of(spoken(context, row["request"]), row["id"].hex)
    if order == "desc":
        items.reverse()
    if after is not None:
        place = next((place for place, item in enumerate(items, 1) if item["id"] == after), None)
        if place is None:
            raise invalid("after", f"{response_id} has no input item with this id")
        items = items[place:]
    page = items[:limit]
    return Json(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


async def _find(request: Request, id_: str) -> Row:
    """Raises NotFound, also for an id of another kind of request, or of another owner."""
    missing = NotFound(f"No {KIND} has the id {id_[:100]!r}.")
    try:
        row = await services_of(request).results.get(caller_of(request), uuid_of(KIND, id_))
    except ResultNotFound:
        raise missing from None
    if row["kind"] != KIND or not row["kept"]:
        raise missing
    return row


async def _streamed(request: Request, row: Row, stored: dict[str, Any], after: int | None) -> Response:
    services, caller = services_of(request), caller_of(request)
    id_: UUID = row["id"]
    # Numbers count from the first event, so all are read, and those the client has are left out.
    following = await services.streams.open(caller, id_)
    if after is not None and after >= BEFORE_TEXT:
        # Refuses once the events are gone: what the numbers counted is not known any more.
        await services.streams.open(caller, id_, 0)
    events = ResponseEvents(id_, int(row["created_at"].timestamp()), model_of(row, stored), stored)
    goes_on = stopping(FACE, id_, repeatable=True, kept=row["kept"])
    return EventStream(
        forget_at_end(request, [row], response_events(following, events, after, goes_on)),
        partial(cancel_if_asked, request, id_),
    )
