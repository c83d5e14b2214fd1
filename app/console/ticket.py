"""One ticket: what was asked, the answer as it grows, its attempts, and what can be done with it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic_core import to_json

from app.api.dependencies import caller_of, root_of, services_of
from app.api.schemas import Result
from app.api.security import READ, SUBMIT, WORK
from app.console.changed_ticket import CHANGED_FROM, changeable
from app.console.chat_asked import uuid_or_none
from app.console.entrance import PREFIX, PageRoute
from app.console.following import ticket_followed
from app.console.pages import event_stream, page, wants_events
from app.console.render import HEADERS, state_of
from app.queue.statements.position import POSITION_LIMIT
from app.queue.ticket import Status
from app.services.chats import chat_of

TEMPLATE = "ticket.html"

router = APIRouter(prefix=f"{PREFIX}/tickets", route_class=PageRoute, include_in_schema=False)


@router.get("/{result_id}", dependencies=[READ])
async def ticket(request: Request, result_id: UUID) -> Response:
    async def gather() -> dict[str, Any]:
        return await _shown(request, result_id)

    if wants_events(request):
        return event_stream(ticket_followed(request, TEMPLATE, result_id, gather))
    return await page(request, TEMPLATE, gather)


async def _shown(request: Request, id_: UUID) -> dict[str, Any]:
    services, caller = services_of(request), caller_of(request)
    row = await services.results.get_placed(caller, id_)
    waiting = await services.results.waiting(row)
    context = await services.contexts.get(caller, row["context_id"])
    return {
        "row": row,
        "phase": state_of(row),
        "final": Status(row["status"]).final,
        "waiting": waiting,
        "position_limit": POSITION_LIMIT,
        "prompt": context,
        "changeable": changeable(row, context),
        "changed_from": _id((context["metadata"] or {}).get(CHANGED_FROM)),
        "chat_id": chat_of(row["client_reference"]),
        "attempts": await services.results.attempts(caller, id_),
        "document": to_json(Result.of(row, waiting), indent=2).decode(),
        "address": str(request.base_url).rstrip("/"),
    }


def _id(text: object) -> UUID | None:
    """What anybody may have written there."""
    return uuid_or_none(text) if isinstance(text, str) else None


@router.post("/{result_id}/cancel", dependencies=[SUBMIT])
async def cancel(request: Request, result_id: UUID) -> Response:
    await services_of(request).results.cancel(caller_of(request), result_id)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/tickets/{result_id}", 303, HEADERS)


@router.post("/{result_id}/retry", dependencies=[WORK])
async def retry(request: Request, result_id: UUID) -> Response:
    row, _ = await services_of(request).submissions.retry(caller_of(request), result_id, streamed=True)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/tickets/{row['id']}", 303, HEADERS)
