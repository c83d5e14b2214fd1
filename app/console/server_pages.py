"""Servers: slots, what runs there and what was done, and adding, draining, activating, disabling and removing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import ADMIN
from app.console.asking import number_of
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.pages import page, wants_events
from app.console.render import HEADERS, html
from app.engines.registry import TAKE_ORDERS
from app.errors import AppError, invalid
from app.services.audit import actor_of
from app.services.servers import KINDS, ServerChange, ServerCreate

Line = Annotated[str, Form(max_length=2000)]
NUMBERS: dict[str, type[int] | type[float]] = {
    "concurrency": int,
    "hourly_price": float,
    "prompt_token_price": float,
    "completion_token_price": float,
}
FIELDS = ("kind", "address", "name", "credential", "models", *NUMBERS)

router = APIRouter(prefix=f"{PREFIX}/servers", route_class=PageRoute, include_in_schema=False, dependencies=[ADMIN])


@router.get("")
async def servers(request: Request) -> Response:
    async def gather() -> dict[str, Any]:
        return {"servers": await services_of(request).servers.list()}

    return await page(request, "servers.html", gather)


@router.get("/new")
async def new(request: Request) -> Response:
    return _form(request, {})


@router.post("")
async def added(
    request: Request,
    kind: Line = "triton",
    address: Line = "",
    name: Line = "",
    credential: Line = "",
    models: Annotated[str, Form(max_length=100_000)] = "",
    concurrency: Line = "",
    hourly_price: Line = "",
    prompt_token_price: Line = "",
    completion_token_price: Line = "",
) -> Response:
    values = (kind, address, name, credential, models)
    prices = (hourly_price, prompt_token_price, completion_token_price)
    given = dict(zip(FIELDS, (*values, concurrency, *prices), strict=True))
    try:
        view = await services_of(request).servers.add(_server_of(given), actor_of(caller_of(request)))
    except AppError as error:
        if error.status >= 500:
            raise
        return _form(request, given, error)
    return _to_server(request, view.id)


@router.get("/{server_id}")
async def server(request: Request, server_id: UUID) -> Response:
    async def gather() -> dict[str, Any]:
        found = await services_of(request).servers.get(server_id)
        return {"server": found, "others": others, "takes_orders": found.kind in TAKE_ORDERS}

    # Not live: what there is to load besides.
    others: Sequence[str] = ()
    if not wants_events(request):
        others = await services_of(request).model_orders.others(server_id)
    return await page(request, "server.html", gather)


@router.post("/{server_id}/models")
async def ordered(
    request: Request, server_id: UUID, model: Line, what: Annotated[Literal["load", "unload"], Form()]
) -> Response:
    """Has a model loaded or unloaded."""
    await services_of(request).model_orders.give(server_id, model, what, actor_of(caller_of(request)))
    return _to_server(request, server_id)


@router.post("/{server_id}/wanted")
async def wanted(
    request: Request, server_id: UUID, state: Annotated[Literal["active", "draining", "disabled"], Form()]
) -> Response:
    change = ServerChange(wanted=state)
    await services_of(request).servers.change(server_id, change, actor_of(caller_of(request)))
    return _to_server(request, server_id)


@router.post("/{server_id}/remove")
async def remove(request: Request, server_id: UUID) -> Response:
    await services_of(request).servers.remove(server_id, actor_of(caller_of(request)))
    return RedirectResponse(f"{root_of(request)}{PREFIX}/servers", 303, HEADERS)


def _server_of(given: dict[str, str]) -> ServerCreate:
    """Raises InvalidRequest, naming the field."""
    fields: dict[str, Any] = {name: text.strip() for name, text in given.items() if text.strip()}
    for name, kind in NUMBERS.items():
        if name in fields:
            fields[name] = number_of(name, fields[name], kind)
    if "models" in fields:
        fields["models"] = dict(_alias(line) for line in fields["models"].splitlines() if line.strip())
    try:
        return ServerCreate(**fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, problem["loc"]))
        message = "is required" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
        raise invalid(name, message) from None


def _alias(line: str) -> tuple[str, str]:
    theirs, sign, ours = line.partition("=")
    if not sign:
        raise invalid("models", f"{line.strip()[:60]!r} is no alias: write their-name = our-name on each line")
    return theirs.strip(), ours.strip()


def _to_server(request: Request, id_: UUID) -> Response:
    return RedirectResponse(f"{root_of(request)}{PREFIX}/servers/{id_}", 303, HEADERS)


def _form(request: Request, given: dict[str, str], refused: AppError | None = None) -> Response:
    values = {
        "given": dict.fromkeys(FIELDS, "") | given,
        "kinds": KINDS,
        "refused": refused,
        "form": form_token_of(request),
    }
    status = 200 if refused is None else refused.status
    return with_cookie(request, html(request.scope, "new_server.html", status, **values))
