"""Who may see a page: a logged-in browser, or without keys one on this machine; what changes anything is our form."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from http.cookies import CookieError, SimpleCookie
from secrets import compare_digest
from typing import Annotated, Any

from fastapi import Depends, Form, Request, Response
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from app.api.dependencies import Services, root_of, services_of
from app.api.openai.files import declared_size
from app.api.problems import RENDERS_ERRORS, route_path
from app.api.security import GuardedRoute, keyless_caller
from app.console.render import error_page
from app.key_errors import ForeignForm, Unauthorized
from app.services.callers import Caller
from app.services.sessions import LIFETIME_DAYS, form_token, new_token

PREFIX = "/console"
COOKIE = "tickets_console"
DAY_SECONDS = 86_400
# A cookie that is sent to nobody but these pages, and read by no script.
ATTRIBUTES: dict[str, Any] = {"httponly": True, "samesite": "strict", "max_age": LIFETIME_DAYS * DAY_SECONDS}
LOG_IN = "Log in with an API key. Whoever runs the service makes one with `make key NAME=...`."


class PageRoute(GuardedRoute):
    """A route for browsers: known by their session, refused in pages, and changed by forms of ours alone."""

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *, dependencies: Sequence[Any] | None = None, **options: Any
    ) -> None:
        changing = set(options.get("methods") or ()) - {"GET"}
        checks = [Depends(_require_own_form)] if changing else []
        super().__init__(path, endpoint, dependencies=[*(dependencies or ()), *checks], **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.access is None or not self.access.upload:
            return handler

        async def with_room(request: Request) -> Response:
            with services_of(request).spool.reserved(declared_size(request)):
                return await handler(request)

        return with_room

    async def authenticate(self, services: Services, scope: Connection) -> Caller:
        caller = keyless_caller(services, scope)
        token = cookie_of(scope)
        if token is not None:
            # Whoever has logged in is whose key it was, on this machine too.
            caller = await services.sessions.caller(token) or caller
        if caller is None:
            raise Unauthorized(LOG_IN)
        scope["state"]["caller"] = caller
        return caller

    async def handle(self, scope: Connection, receive: Receive, send: Send) -> None:
        scope["state"][RENDERS_ERRORS] = error_page
        await super().handle(scope, receive, send)


def cookie_of(scope: Connection) -> str | None:
    """The token of the browser; None for one that has not been here."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            try:
                found = SimpleCookie(value.decode("latin-1")).get(COOKIE)
            except CookieError:
                continue
            if found is not None and found.value:
                return found.value
    return None


def form_token_of(request: Request) -> str:
    """For the forms of the page that answers this request; a browser without a token is about to get this one."""
    token = cookie_of(request.scope)
    if token is None:
        token = getattr(request.state, "console_token", None)
    if token is None:
        token = request.state.console_token = new_token()
    return form_token(token)


def with_cookie(request: Request, response: Response, token: str | None = None) -> Response:
    """Gives the browser its token, where it has none or another."""
    token = token or getattr(request.state, "console_token", None)
    if token is not None:
        path, secure = root_of(request) + PREFIX, request.url.scheme == "https"
        response.set_cookie(COOKIE, token, path=path, secure=secure, **ATTRIBUTES)
    return response


async def _require_own_form(request: Request, form: Annotated[str, Form(max_length=100)] = "") -> None:
    token = cookie_of(request.scope)
    if token is None or not compare_digest(form.encode(), form_token(token).encode()):
        raise ForeignForm(
            "Nothing was changed: the form was not made for this browser, or is older than its log-in. Go back, load "
            "the page again and repeat what you did."
        )


def path_of(request: Request) -> str:
    """Below ROOT_PATH, with the query: where a log-in leads back to."""
    query = request.url.query
    return route_path(request.scope) + (f"?{query}" if query else "")
