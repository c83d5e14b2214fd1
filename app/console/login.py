"""Logging in with an API key, and out; the static files, which anybody may read."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from app.api.assets import asset_response
from app.api.dependencies import root_of, services_of
from app.api.security import OPEN, READ
from app.console.entrance import COOKIE, PREFIX, PageRoute, cookie_of, form_token_of, with_cookie
from app.console.render import HEADERS, STATIC, asset_version, html, with_retry_after
from app.errors import NotFound
from app.key_errors import TooManyGuesses, Unauthorized

A_YEAR = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
ASSETS = frozenset(path.name for path in STATIC.iterdir())

router = APIRouter(prefix=PREFIX, route_class=PageRoute, include_in_schema=False)


@router.get("/login", dependencies=[OPEN])
async def log_in(request: Request, to: str = "", ended: str = "") -> Response:
    values: dict[str, Any] = {"form": form_token_of(request), "to": _inside(to), "ended": bool(ended), "refused": None}
    return with_cookie(request, html(request.scope, "login.html", **values))


@router.post("/login", dependencies=[OPEN])
async def logged_in(
    request: Request, key: Annotated[str, Form(max_length=200)] = "", to: Annotated[str, Form(max_length=2000)] = ""
) -> Response:
    address = request.client.host if request.client else ""
    try:
        token = await services_of(request).sessions.open(key.strip(), address)
    except (Unauthorized, TooManyGuesses) as error:
        values = {"form": form_token_of(request), "to": _inside(to), "ended": False, "refused": error.detail}
        page = html(request.scope, "login.html", error.status, **values)
        return with_retry_after(page, error)
    # Another token than before, which somebody else may have put there.
    return with_cookie(request, RedirectResponse(root_of(request) + _inside(to), 303, HEADERS), token)


@router.post("/logout", dependencies=[READ])
async def log_out(request: Request) -> Response:
    token = cookie_of(request.scope)
    if token is not None:
        await services_of(request).sessions.close(token)
    response = RedirectResponse(f"{root_of(request)}{PREFIX}/login", 303, HEADERS)
    response.delete_cookie(COOKIE, path=root_of(request) + PREFIX)
    return response


@router.get("/static/{name}", dependencies=[OPEN])
async def static(name: str, v: str = "") -> Response:
    if name not in ASSETS:
        raise NotFound("The console has no such file.")
    return asset_response(STATIC / name, A_YEAR if v == asset_version(name) else {"Cache-Control": "no-cache"})


@router.get("/{path:path}", dependencies=[READ])
async def nowhere(path: str) -> Response:
    raise NotFound("The console has no such page.")


def _inside(path: str) -> str:
    """Where to go after the log-in: a page of the console and nothing else."""
    return path if path.startswith(f"{PREFIX}/") and "\\" not in path and "//" not in path else f"{PREFIX}/"
