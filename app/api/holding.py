"""A connection that is held for a ticket: until its end, or as a stream. Whichever form the answer has."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from uuid import UUID

from fastapi import Request, Response

from app.api import sse
from app.api.dependencies import caller_of, services_of
from app.api.wishes import wish_of
from app.errors import AppError, DatabaseUnavailable, ServiceStopping
from app.openai.answers import Row
from app.openai.failures import OF_THE_REQUEST, STATUSES, GenerationFailed
from app.openai.requests import Prepared
from app.queue.ticket import Status
from app.services.results import require_texts

HOLD_SECONDS = 600.0
DATABASE_RETRY_SECONDS = 1.0
CLIENT_CLOSED_REQUEST = 499
CANCEL_HEADER = "x-cancel-on-disconnect"
IGNORED_HEADER = "x-ignored"
_REFERENCE = re.compile(r"[\x21-\x7e]{1,200}")


async def make_ticket(
    request: Request,
    prepared: Prepared,
    key: str | None = None,
    *,
    streamed: bool = False,
    priority: int = 0,
    client_reference: str | None = None,
) -> tuple[Row, bool]:
    """The ticket's row, committed; True when an earlier request with the key had made it."""
    row, replayed = await services_of(request).submissions.submit_prompt(
        caller_of(request),
        prepared.model,
        prepared.prompt,
        prepared.parameters,
        kind=prepared.kind,
        request=prepared.request,
        streamed=streamed,
        priority=priority,
        client_reference=client_reference or _reference_of(request, prepared),
        idempotency_key=key,
        webhook=prepared.webhook,
        kept=prepared.kept,
        turn=prepared.turn,
        wish=wish_of(request),
    )
    require_texts(row)
    return row, replayed


def _reference_of(request: Request, prepared: Prepared) -> str | None:
    """A request id of the client's own finds its ticket later, also where the answer never arrived."""
    for given in (request.headers.get("x-request-id"), prepared.request.get("request_id")):
        if given and _REFERENCE.fullmatch(given):
            return str(given)
    return None


async def completed(request: Request, row: Row) -> Row | None:
    """The completed result of a ticket; None when the client is gone.

    Raises:
        GenerationFailed: it failed.
        ServiceStopping: this process ends before the ticket does.
    """
    final = await hold_until_final(request, row["id"], stopping(row))
    if final is not None and final["status"] == Status.FAILED:
        raise failure(final)
    return final


def failure(row: Row) -> AppError:
    """The error of a failed result's row."""
    code: str = row["error_code"]
    status = STATUSES.get(code, 400 if code in OF_THE_REQUEST else 502)
    return GenerationFailed(code, status, f"{row['error_message']} (result {row['id']})", None)


def stopping(row: Row) -> AppError:
    return ServiceStopping(
        f"This process is stopping; the request goes on as result {row['id']}. GET /results/{row['id']} has the answer "
        "once it is there.",
        # Sent once more it would be a second ticket.
        headers={"Retry-After": "2", "x-should-retry": "false"},
    )


async def hold_until_final(request: Request, id_: UUID, stopping: AppError) -> Row | None:
    """The final result, however long it takes; None when the client is gone.

    Raises:
        AppError: `stopping`, where this process ends before the ticket does.
    """
    services, caller = services_of(request), caller_of(request)
    while True:
        try:
            row = await services.results.wait(caller, id_, HOLD_SECONDS, request.is_disconnected)
            if await request.is_disconnected():
                await cancel_if_asked(request, id_)
                return None
        except DatabaseUnavailable:
            await asyncio.sleep(DATABASE_RETRY_SECONDS)
            if services.results.stopping:
                raise stopping from None
            continue
        if Status(row["status"]).final:
            return row
        if services.results.stopping:
            raise stopping


async def stream_until_final(
    request: Request, id_: UUID, body: AsyncGenerator[bytes], told: Callable[[AppError], bytes]
) -> Response:
    """Sends `body`. What it raises before its first piece is the answer's status; later it is sent as `told` has it.

    Raises:
        AppError: before the first piece.
    """
    first = asyncio.create_task(anext(body))
    if not request.scope["state"].get("head") and not await _begun(request, first):
        await cancel_if_asked(request, id_)
        first.cancel()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return sse.EventStream(_telling(first, body, told), partial(cancel_if_asked, request, id_))


async def cancel_if_asked(request: Request, id_: UUID) -> None:
    """Cancels for a client that went away, if it sent the header that asks for this."""
    if request.headers.get(CANCEL_HEADER, "").lower() == "true":
        await services_of(request).results.cancel(caller_of(request), id_)


async def _begun(request: Request, first: asyncio.Task[bytes]) -> bool:
    """Waits for the first piece; False when the client left.

    Not for longer than a stream may be silent: whoever waits in the queue is to see that the connection lives.

    Raises:
        AppError: the first piece is one.
    """
    gone = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({first, gone}, timeout=sse.KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        first.cancel()
        raise
    finally:
        gone.cancel()
    if first.done() and isinstance(error := first.exception(), AppError):
        raise error
    return first.done() or not gone.done()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _telling(
    first: asyncio.Task[bytes], rest: AsyncGenerator[bytes], told: Callable[[AppError], bytes]
) -> AsyncGenerator[bytes]:
    """A stream whose errors are told in it, because its status is sent already; `first` is its next piece."""
    try:
        async with aclosing(rest):
            yield await first
            async for part in rest:
                yield part
    except StopAsyncIteration:
        return
    except AppError as error:
        yield told(error)
    finally:
        first.cancel()
