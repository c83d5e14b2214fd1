"""What the forms of other servers have in common: which model answers, and the ticket behind an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request, Response

from app.api.dependencies import PROBLEM_CONTENT, caller_of, mark_replayed, problems, services_of
from app.api.holding import IGNORED_HEADER, failure, stopping
from app.api.openai.documents import OF_GENERATIONS
from app.errors import invalid
from app.openai.answers import Row
from app.openai.requests import Prepared
from app.queue.ticket import Status
from app.services.catalog import shown
from app.services.results import never_gone
from app.services.streams import End, Event, Following

RESULT_HEADER = "x-result-id"
# The error answers of routes that hold a connection for a ticket, for the OpenAPI document.
ERRORS = problems(400, 404, 409, 410, 413, 415, 422) | {
    status: {"description": OF_GENERATIONS.get(status, "A defect of the service"), "content": PROBLEM_CONTENT}
    for status in (500, 502, 504)
}


async def model_or_default(request: Request, named: str | None, field: str = "model", *, embeds: bool = False) -> str:
    """The model that a request names, else the default, else the only one that chats, or that `embeds`.

    Raises:
        InvalidRequest: it names none, no default is set, and the caller may use several, or none.
    """
    services, caller = services_of(request), caller_of(request)
    chosen = named or (None if embeds else services.settings.default_model)
    if chosen:
        return chosen
    entries = [entry for entry in await services.catalog.models() if caller.may_use(entry.name)]
    served = [entry.name for entry in entries if entry.public_state != "unavailable"] or [
        entry.name for entry in entries
    ]
    able = {name: services.profiles.of(name).capabilities for name in served}
    fitting = [name for name, can in able.items() if can is None or (can.embed if embeds else can.chat)]
    if len(fitting) == 1:
        return fitting[0]
    there = f"there are {shown(fitting)}" if fitting else f"no server serves one that {'embeds' if embeds else 'chats'}"
    raise invalid(field, f"name the model{'' if embeds else ', or have DEFAULT_MODEL set'}: {there}")


async def followed(following: Following, row: Row) -> AsyncGenerator[Event | End]:
    """The events of a ticket, the last one that of a completed result.

    Raises:
        GenerationFailed: it failed.
        ServiceStopping: this process ends before the ticket does.
    """
    async with aclosing(following.events(never_gone)) as events:
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
