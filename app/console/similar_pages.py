"""Parts of the pages of chats that are filled in once the page is there: questions found by meaning."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response

from app.api.dependencies import caller_of, services_of
from app.api.security import READ, WORK
from app.console.entrance import PREFIX, PageRoute
from app.console.render import html
from app.errors import AppError
from app.services.meaning import SimilarStatus
from app.storable import StorableText

SHOWN = 5
FOUND, SIMILAR = "chats_by_meaning.html", "similar.html"

router = APIRouter(prefix=f"{PREFIX}/chat", route_class=PageRoute, include_in_schema=False)


@router.post("/meaning", dependencies=[WORK])
async def by_meaning(request: Request, text: Annotated[StorableText, Form(min_length=1, max_length=255)]) -> Response:
    """Rows for the table of what was found. A POST, for the model works for it."""
    try:
        found = await services_of(request).meaning.search(caller_of(request), text, request.is_disconnected)
    except AppError as error:
        return html(request.scope, FOUND, found=[], refused=error)
    return html(request.scope, FOUND, found=found, refused=None)


@router.get("/similar/{result_id}", dependencies=[READ])
async def similar(request: Request, result_id: UUID) -> Response:
    """What was asked before that is like it; a 202 without any while that is not known yet."""
    found = await services_of(request).meaning.similar(caller_of(request), result_id, SHOWN)
    return html(request.scope, SIMILAR, 202 if found.status is SimilarStatus.PENDING else 200, found=found.questions)
