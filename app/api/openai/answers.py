"""From a ticket to the answer in OpenAI's shape: held until the end, streamed, or looked up later by its id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header, Query, Request, Response
from pydantic_core import to_json
from starlette.background import BackgroundTask

from app.api.dependencies import Services, caller_of, mark_replayed, services_of
from app.api.holding import (
    CLIENT_CLOSED_REQUEST,
    IGNORED_HEADER,
    cancel_if_asked,
    hold_until_final,
    make_ticket,
    stream_until_final,
)
from app.api.openai.sse import error_event, several_streams, stream_events
from app.errors import NotFound, ResultNotFound, ResultPending, ServiceStopping
from app.openai.answers import Face, Row, StreamUsage, model_of
from app.openai.failures import failure_of
from app.openai.ids import object_id, uuid_of
from app.openai.requests import Prepared
from app.queue.ticket import Status
from app.services.callers import Caller
from app.services.results import require_texts


class Json(Response):
    media_type = "application/json"

    def __init__(self, document: Mapping[str, Any] | Sequence[Any]) -> None:
        super().__init__(to_json(document))


def _cursor(
    starting_after: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31)] = None,
) -> int | None:
    return last_event_id if starting_after is None else starting_after


# The event after which a stream goes on.
Cursor = Annotated[int | None, Depends(_cursor)]


async def submit(
    request: Request,
    face: Face,
    prepared: Prepared,
    key: str | None,
    *,
    stream: bool = False,
    usage: StreamUsage = StreamUsage.NOWHERE,
) -> Response:
    """Makes the ticket and answers as the client wants it."""
    services, caller = services_of(request), caller_of(request)
    row, replayed = await make_ticket(request, prepared, key, streamed=stream, priority=prepared.priority)
    response: Response
    if stream:
        response = await _streamed(request, services, caller, face, row, prepared.request, None, usage)
    else:
        final = await hold(request, face, row["id"], repeatable=key is not None, kept=prepared.kept)
        if final is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        response = Json(face.render(final, prepared.request))
        forget_after(request, response, [final])
    mark(response, prepared, replayed)
    return response


async def submit_several(
    request: Request,
    face: Face,
    prepared: Sequence[Prepared],
    key: str | None,
    merged: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
    *,
    stream: bool = False,
    usage: StreamUsage = StreamUsage.NOWHERE,
) -> Response:
    """Makes a ticket of each, and answers with all at their end, or streams them; the answer has the first one's id."""
    if stream:
        made = await _make_several(request, prepared, key, streamed=True)
        streamed = await _streamed_together(request, face, [row for row, _ in made], prepared[0].request, usage)
        mark(streamed, prepared[0], all(replayed for _, replayed in made))
        return streamed
    held = await hold_several(
        request,
        prepared,
        key,
        lambda row: hold(request, face, row["id"], repeatable=key is not None, kept=prepared[0].kept),
    )
    if held is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    rows, replayed = held
    response = Json(merged([face.render(row, each.request) for row, each in zip(rows, prepared, strict=True)]))
    forget_after(request, response, rows)
    mark(response, prepared[0], replayed)
    return response


async def hold_several(
    request: Request, prepared: Sequence[Prepared], key: str | None, held: Callable[[Row], Awaitable[Row | None]]
) -> tuple[list[Row], bool] | None:
    """A ticket of each, and the completed rows as `held` gives them; None when the client is gone.

    True where earlier requests with the key had made all of them.
    """
    made = await _make_several(request, prepared, key, streamed=False)
    finals = []
    for row, _ in made:
        final = await held(row)
        if final is None:
            await asyncio.gather(*(cancel_if_asked(request, row["id"]) for row, _ in made))
            return None
        finals.append(final)
    return finals, all(replayed for _, replayed in made)


async def _make_several(
    request: Request, prepared: Sequence[Prepared], key: str | None, *, streamed: bool
) -> list[tuple[Row, bool]]:
    keys = [key if key is None or not place else f"{key[:240]} {place}" for place in range(len(prepared))]
    return await asyncio.gather(
        *(
            make_ticket(request, each, own, streamed=streamed, priority=each.priority)
            for each, own in zip(prepared, keys, strict=True)
        )
    )


def mark(response: Response, prepared: Prepared, replayed: bool) -> None:
    """Says in headers what the client could not know otherwise."""
    mark_replayed(response, replayed)
    if prepared.ignored:
        response.headers[IGNORED_HEADER] = ", ".join(prepared.ignored)


async def look_up(
    request: Request,
    face: Face,
    id_: str,
    *,
    stream: bool = False,
    after: int | None = None,
    usage: StreamUsage = StreamUsage.NOWHERE,
) -> Response:
    """The answer to an earlier request, by its id.

    Raises:
        ResultPending: it is not there yet.
        ResultNotFound: the id is of no request, or of another kind of request.
    """
    services, caller = services_of(request), caller_of(request)
    try:
        row = await services.results.get(caller, uuid_of(face.kind, id_))
    except ResultNotFound:
        raise NotFound(f"No {face.kind} has the id {id_[:100]!r}.") from None
    if row["kind"] != face.kind or not row["kept"]:
        raise NotFound(f"No {face.kind} has the id {id_[:100]!r}.")
    if stream:
        return await _streamed(request, services, caller, face, row, row["request"] or {}, after, usage)
    if not Status(row["status"]).final:
        raise ResultPending(
            f"{id_} is {row['status']}: ask again, wait for it with GET /results/{row['id']} and Prefer: wait=60, or "
            "follow it with ?stream=true.",
            headers={"Retry-After": "1"},
        )
    if row["status"] == Status.FAILED:
        raise failure_of(row, face.kind)
    return Json(face.render(row, row["request"] or {}))


async def hold(request: Request, face: Face, id_: UUID, *, repeatable: bool, kept: bool = True) -> Row | None:
    """The completed result, however long it takes; None when the client is gone.

    Raises:
        GenerationFailed: it failed.
        ServiceStopping: this process ends before the generation does.
        Removed: it is not kept, and was delivered to another.
    """
    row = await hold_until_final(request, id_, stopping(face, id_, repeatable, kept))
    if row is not None and row["status"] == Status.FAILED:
        if not row["kept"]:
            await _forget(request, [row])
        raise failure_of(row, face.kind)
    if row is not None:
        require_texts(row)
    return row


def forget_after(request: Request, response: Response, rows: Sequence[Row]) -> None:
    """Has the texts of those that are not kept removed once the response is sent."""
    if unkept := [row for row in rows if not row["kept"]]:
        response.background = BackgroundTask(_forget, request, unkept)


async def forget_at_end(request: Request, rows: Sequence[Row], body: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """As `forget_after`, for a stream."""
    try:
        async with aclosing(body):
            async for part in body:
                yield part
    finally:
        if unkept := [row for row in rows if not row["kept"]]:
            await _forget(request, unkept)


async def _forget(request: Request, rows: Sequence[Row]) -> None:
    services = services_of(request)
    for row in rows:
        if row["conversation_id"] is not None:
            await services.conversations.catch_up_with(row["conversation_id"])
    await services.results.forget([row["id"] for row in rows])


async def _streamed(
    request: Request,
    services: Services,
    caller: Caller,
    face: Face,
    row: Row,
    stored: Mapping[str, Any],
    after: int | None,
    usage: StreamUsage,
) -> Response:
    assert face.chunks is not None
    id_: UUID = row["id"]
    following = await services.streams.open(caller, id_, after)
    if after is not None and not following.exhausted:
        # What comes after it can only be told by who knows what came before.
        following = await services.streams.open(caller, id_)
    chunks = face.chunks(id_, int(row["created_at"].timestamp()), model_of(row, stored), stored, usage)

    body = stream_events(following, chunks, face.kind, after, stopping(face, id_, repeatable=True, kept=row["kept"]))
    return await stream_until_final(request, id_, forget_at_end(request, [row], body), error_event)


async def _streamed_together(
    request: Request, face: Face, rows: Sequence[Row], stored: Mapping[str, Any], usage: StreamUsage
) -> Response:
    assert face.chunks is not None
    services, caller = services_of(request), caller_of(request)
    followings = [await services.streams.open(caller, row["id"]) for row in rows]
    first, many = rows[0], stored.get("n") or 1
    head = (first["id"], int(first["created_at"].timestamp()), model_of(first, stored))
    chunks = [face.chunks(*head, each["request"], StreamUsage.NOWHERE, many * place) for place, each in enumerate(rows)]
    total = {
        "id": object_id(face.kind, head[0]),
        "object": face.kind,
        "created": head[1],
        "model": head[2],
        "choices": [],
    }
    goes_on = stopping(face, head[0], repeatable=False, kept=first["kept"])
    body = several_streams(followings, chunks, face.kind, total if usage else None, goes_on)
    return await stream_until_final(request, head[0], forget_at_end(request, rows, body), error_event)


def stopping(face: Face, id_: UUID, repeatable: bool, kept: bool = True) -> ServiceStopping:
    known = object_id(face.kind, id_)
    if not kept:
        return ServiceStopping(
            f"This process is stopping, and the answer to {known} is not kept (store: false): send the request again.",
            headers={"Retry-After": "2", "x-should-retry": "true"},
        )
    again = f"GET {face.path}/{known} has the answer once it is there."
    # Without a key, sending the request once more would make a second ticket.
    return ServiceStopping(
        f"This process is stopping; the request goes on as {known}. {again}",
        headers={"Retry-After": "2", "x-should-retry": "true" if repeatable else "false"},
    )
