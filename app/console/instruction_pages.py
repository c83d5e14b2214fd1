"""Named instructions: the list, and each with its text, its parent and what the two come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import READ, SUBMIT
from app.console.asking import Word
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.render import HEADERS, html
from app.errors import AppError, invalid
from app.services.instructions import MOST_NAME_CHARS, MOST_TEXT_CHARS, Wanted
from app.storable import StorableText

LIST, ONE = "instructions.html", "instruction.html"

router = APIRouter(prefix=f"{PREFIX}/instructions", route_class=PageRoute, include_in_schema=False)


async def _given(
    name: Annotated[StorableText, Form(max_length=MOST_NAME_CHARS)] = "",
    text: Annotated[StorableText, Form(max_length=MOST_TEXT_CHARS)] = "",
    parent: Word = "",
    shared: Word = "",
) -> dict[str, str]:
    return {"name": name.strip(), "text": text, "parent": parent, "shared": shared}


Given = Annotated[dict[str, str], Depends(_given)]


@router.get("", dependencies=[READ])
async def instructions(request: Request, parent: str = "") -> Response:
    return await _list(request, {"parent": parent})


@router.post("", dependencies=[SUBMIT])
async def create(request: Request, given: Given) -> Response:
    try:
        id_ = await services_of(request).instructions.create(caller_of(request), _wanted(given))
    except AppError as error:
        if error.status >= 500:
            raise
        return await _list(request, given, error)
    return _to(request, f"/{id_}")


@router.get("/{instructions_id}", dependencies=[READ])
async def one(request: Request, instructions_id: UUID) -> Response:
    return await _one(request, instructions_id)


@router.post("/{instructions_id}", dependencies=[SUBMIT])
async def change(request: Request, instructions_id: UUID, given: Given) -> Response:
    try:
        await services_of(request).instructions.change(caller_of(request), instructions_id, _wanted(given))
    except AppError as error:
        if error.status >= 500 or error.status == 404:
            raise
        return await _one(request, instructions_id, given, error)
    return _to(request, f"/{instructions_id}")


@router.post("/{instructions_id}/delete", dependencies=[SUBMIT])
async def delete(request: Request, instructions_id: UUID) -> Response:
    await services_of(request).instructions.delete(caller_of(request), instructions_id)
    return _to(request)


def _to(request: Request, below: str = "") -> Response:
    return RedirectResponse(f"{root_of(request)}{PREFIX}/instructions{below}", 303, HEADERS)


def _wanted(given: Mapping[str, str]) -> Wanted:
    for name in ("name", "text"):
        if not given[name].strip():
            raise invalid(name, "is empty")
    try:
        parent = UUID(given["parent"]) if given["parent"] else None
    except ValueError:
        raise invalid("parent", "is the id of instructions") from None
    return Wanted(given["name"], given["text"], parent, bool(given["shared"]))


async def _list(request: Request, given: Mapping[str, str], refused: AppError | None = None) -> Response:
    rows = await services_of(request).instructions.visible(caller_of(request))
    empty = dict.fromkeys(("name", "text", "parent", "shared"), "")
    return _page(request, LIST, refused, rows=rows, given=empty | dict(given))


async def _one(
    request: Request, id_: UUID, given: Mapping[str, str] | None = None, refused: AppError | None = None
) -> Response:
    service, caller = services_of(request).instructions, caller_of(request)
    row = await service.get(caller, id_)
    stored = {
        "name": row["name"],
        "text": row["text"],
        "parent": str(row["parent_id"] or ""),
        "shared": "on" if row["shared"] else "",
    }
    values: dict[str, Any] = {
        "row": row,
        "own": row["owner_id"] == caller.owner_id,
        "given": given or stored,
        "whole": await service.text(caller, id_),
        "rows": [each for each in await service.visible(caller) if each["id"] != id_],
    }
    return _page(request, ONE, refused, **values)


def _page(request: Request, template: str, refused: AppError | None, **values: Any) -> Response:
    status = 200 if refused is None else refused.status
    owner_id, form = caller_of(request).owner_id, form_token_of(request)
    return with_cookie(
        request, html(request.scope, template, status, refused=refused, form=form, owner_id=owner_id, **values)
    )
