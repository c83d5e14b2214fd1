"""API keys: made here and shown once, listed with their limits, revoked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError
from starlette.datastructures import FormData

from app.api.dependencies import caller_of, root_of, services_of
from app.api.keys import KeyCreate, new_key
from app.api.problems import invalid_fields
from app.api.security import ADMIN, READ
from app.console.asking import faults_of
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.render import HEADERS, html
from app.db.ids import uuid7
from app.errors import AppError, invalid
from app.services.audit import actor_of
from app.services.callers import LIMITS, Scope

# What a new key may be given beside its name and scopes: a field of KeyCreate, and its label.
NAMES = {"person": "Who uses it", "owner": "Owner"}
BOUNDS = {
    "requests_per_minute": "Requests a minute",
    "pending_limit": "Pending tickets",
    "tokens_per_day": "Tokens a day",
    "tokens_per_month": "Tokens a month",
    "dollars_per_day": "Dollars a day",
    "dollars_per_month": "Dollars a month",
    "storage_bytes": "Bytes of files",
    "weight": "Weight of the owner",
    "expires_in_days": "Days until it expires",
}
LONGEST_FIELD = 20_000
EMPTY: Mapping[str, Any] = {
    **dict.fromkeys(("name", *NAMES, *BOUNDS, "models", "webhook"), ""),
    "scopes": [Scope.READ, Scope.SUBMIT],
}

router = APIRouter(prefix=f"{PREFIX}/keys", route_class=PageRoute, include_in_schema=False)


@router.get("", dependencies=[READ])
async def keys(request: Request) -> Response:
    return await _page(request, EMPTY)


@router.post("", dependencies=[ADMIN])
async def made(request: Request) -> Response:
    """The page with the new key on it. The form has the id of the key it makes, so sent again it makes none."""
    services, form = services_of(request), await request.form()
    given = _given(form)
    try:
        body = KeyCreate.model_validate(_document(given), strict=False)
        new = new_key(body, services.settings, _id(form))
        row, key = await services.keys.create(new, actor_of(caller_of(request)))
    except ValidationError as error:
        return await _page(request, given, refused=invalid_fields(error.errors(include_url=False, include_input=False)))
    except AppError as error:
        if error.status >= 500:
            raise
        return await _page(request, given, refused=error)
    return await _page(request, EMPTY, new=row, key=key)


@router.post("/{key_id}/revoke", dependencies=[ADMIN])
async def revoke(request: Request, key_id: UUID) -> Response:
    await services_of(request).keys.revoke(key_id, actor_of(caller_of(request)))
    return RedirectResponse(f"{root_of(request)}{PREFIX}/keys", 303, HEADERS)


async def _page(
    request: Request,
    given: Mapping[str, Any],
    *,
    refused: AppError | None = None,
    new: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> Response:
    services, caller = services_of(request), caller_of(request)
    rows = sorted(await services.keys.seen_by(caller), key=lambda row: (row["state"] != "active", -row["id"].int))
    values = {
        "rows": rows,
        "used": await services.limits.used([row for row in rows if row["state"] == "active"]),
        "limits": {name: BOUNDS[name] for name in LIMITS},
        "fields": {"names": NAMES, "bounds": BOUNDS},
        "scopes": list(Scope),
        "given": given,
        "refused": refused,
        "faults": {} if refused is None else faults_of(refused, {name: name for name in EMPTY}),
        "new": new,
        "key": key,
        "id": uuid7(),
        "address": str(request.base_url).rstrip("/"),
        "own": caller.key_id,
        "form": form_token_of(request),
    }
    return with_cookie(request, html(request.scope, "keys.html", 200 if refused is None else refused.status, **values))


def _given(form: FormData) -> dict[str, Any]:
    """What was typed; files, and what a field cannot hold, are nothing."""
    texts = {name: value.strip() for name, value in form.items() if isinstance(value, str)}
    scopes = [value for value in form.getlist("scopes") if isinstance(value, str)]
    return {name: texts.get(name, "")[:LONGEST_FIELD] for name in EMPTY} | {"scopes": scopes}


def _document(given: Mapping[str, Any]) -> dict[str, Any]:
    """As `POST /keys/` takes it, numbers as texts; what was left empty is left out."""
    document: dict[str, Any] = {name: value for name, value in given.items() if value and name != "webhook"}
    document["scopes"] = given["scopes"]
    if given["models"]:
        document["models"] = given["models"].replace(",", " ").split()
    if given["webhook"]:
        document["webhook"] = {"url": given["webhook"], "events": ["result.completed", "result.failed"]}
    return document


def _id(form: FormData) -> UUID:
    try:
        return UUID(str(form.get("id", "")))
    except ValueError:
        raise invalid("id", "the form has no id: load the page again") from None
