"""What the forms of other servers have in common: the ticket behind an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Response

from app.api.dependencies import PROBLEM_CONTENT, mark_replayed, problems
from app.api.holding import IGNORED_HEADER, failure, stopping
from app.api.openai.documents import OF_GENERATIONS
from app.openai.answers import Row
from app.openai.requests import Prepared
from app.queue.ticket import Status
from app.services.streams import End, Event, Following

RESULT_HEADER = "x-result-id"
# The error answers of routes that hold a connection for a ticket, for the OpenAPI document.
ERRORS = problems(400, 404, 409, 410, 413, 415, 422) | {
    status: {"description": OF_GENERATIONS.get(status, "A defect of the service"), "content": PROBLEM_CONTENT}
    for status in (500, 502, 504)
}


async def followed(following: Following, row: Row) -> AsyncGenerator[Event | End]:
    """The events of a ticket, the last one that of a completed result.

    Raises:
        GenerationFailed: it failed.
        ServiceStopping: this process ends before the ticket does.
    """
    async with aclosing(following.events()) as events:
        async for item in events:
            if isinstance(item, End) and item.row["status"] == Status.FAILED:
                raise failure(item.row)
            yield item
            if isinstance(item, End):
                return
    raise stopping(row)


def mark(response: Response, row: Row, prepared: Prepared, replayed: bool = False) -> Response:
    """Names the ticket, and says what of the request has no effect."""
    response.headers[RESULT_HEADER] = str(row["id"])
    mark_replayed(response, replayed)
    if prepared.ignored:
        response.headers[IGNORED_HEADER] = ", ".join(prepared.ignored)
    return response
