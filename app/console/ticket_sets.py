"""What is done with all tickets that match, after their number was said: export, cancel, and run again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import READ, SUBMIT, WORK
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.render import HEADERS, html, query
from app.console.ticket_table import MEDIA_TYPE, NAMES, csv_of
from app.console.tickets import Searched
from app.db.ids import uuid7
from app.errors import AppError
from app.openai.batch_lines import json_line
from app.services.ticket_list import MOST_COUNTED, Search

# Each is read with its answer.
RETRIED_AT_ONCE = 32
MEDIA_TYPES = {"jsonl": "application/jsonl", "csv": MEDIA_TYPE}
NOT_OF_NEW = ("state", "error", "server", "after", "before")

router = APIRouter(prefix=f"{PREFIX}/tickets", route_class=PageRoute, include_in_schema=False)

Row = Mapping[str, Any]
Once = Annotated[str, Form(pattern=r"^([0-9a-f]{32})?$")]


@router.get("/export", dependencies=[READ])
async def export(request: Request, searched: Searched, kind: Literal["", "jsonl", "csv"] = "") -> Response:
    """Says how many there are; with a `kind`, the file of them."""
    search, given = searched
    tickets, caller = services_of(request).ticket_list, caller_of(request)
    if not kind:
        counted = await tickets.count(caller, search)
        values: dict[str, Any] = {"counted": counted, "given": given, "form": form_token_of(request)}
        return with_cookie(request, html(request.scope, "export.html", **values))
    rows = tickets.export(caller, search)
    headers = HEADERS | {"Content-Disposition": f'attachment; filename="tickets.{kind}"'}
    body = _jsonl(rows) if kind == "jsonl" else csv_of(rows)
    return StreamingResponse(body, headers=headers, media_type=MEDIA_TYPES[kind])


async def _jsonl(rows: AsyncIterator[Row]) -> AsyncIterator[bytes]:
    async for row in rows:
        yield json_line({name: row[name] for name in NAMES})


@router.get("/cancel", dependencies=[SUBMIT])
async def ask_to_cancel(request: Request, searched: Searched) -> Response:
    """Says how many would be looked at before any is cancelled."""
    return await _asked(request, searched, "cancel.html")


@router.post("/cancel", dependencies=[SUBMIT])
async def cancel(request: Request, searched: Searched, once: Once = "") -> Response:
    """Cancels those that match and are not final; of more than MOST_COUNTED, the newest.

    `once` is the UUIDv7 of the form: what came after it was not in the number that it said.
    """
    search, given = searched
    services, caller = services_of(request), caller_of(request)
    ids = await services.ticket_list.ids(caller, search, UUID(once) if once else None)
    return _listed(request, given, cancelled=await services.results.cancel_many(caller, ids))


@router.get("/retry", dependencies=[SUBMIT])
async def ask_to_retry(request: Request, searched: Searched) -> Response:
    """Says how many would be looked at before any is run again."""
    return await _asked(request, searched, "retry.html")


async def _asked(request: Request, searched: tuple[Search, dict[str, str]], template: str) -> Response:
    search, given = searched
    values: dict[str, Any] = {
        "counted": await services_of(request).ticket_list.count(caller_of(request), search),
        "given": given,
        "most": MOST_COUNTED,
        "form": form_token_of(request),
        "once": uuid7().hex,
    }
    return with_cookie(request, html(request.scope, template, **values))


@router.post("/retry", dependencies=[WORK])
async def retry(request: Request, searched: Searched, once: Once = "") -> Response:
    """New tickets for those that match and are final; a form that is sent twice makes them once.

    `once` is the UUIDv7 of the form: what came after it was not in the number that it said, its own tickets least
    of all.
    """
    search, given = searched
    services, caller = services_of(request), caller_of(request)
    form = UUID(once) if once else uuid7()
    ids = await services.ticket_list.ids(caller, search, form)
    made = 0
    for place in range(0, len(ids), RETRIED_AT_ONCE):
        part = ids[place : place + RETRIED_AT_ONCE]
        try:
            made += await services.submissions.retry_many(caller, part, f"console-{form.hex}")
        except AppError as error:
            if made:
                error.detail = (
                    f"{made:,} of them were run again before this: {error.detail} Go back and send the form again "
                    "later for the others; none is run again twice."
                )
            raise
    # Of the filters those that the tickets match which were made just now.
    return _listed(request, {name: value for name, value in given.items() if name not in NOT_OF_NEW}, again=made)


def _listed(request: Request, given: Mapping[str, str], **said: int) -> Response:
    return RedirectResponse(f"{root_of(request)}{PREFIX}/tickets{query(given, **said)}", 303, HEADERS)
