"""Who asks, whether they may, and whether their key's limits leave room: before anything of the body is read."""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import Services
from app.api.problems import error_response
from app.errors import AppError, ScopeMissing, Unauthorized
from app.services import callers
from app.services.callers import ANONYMOUS, Caller
from app.services.keys import KEY

OPEN = re.compile(r"/health/[^/]*|/metrics|/openapi\.json|/docs(/.*)?|/redoc")
ADMIN = re.compile(r"/keys(/.*)?")
# What makes an engine work: sends, retries, and what OpenAI's API calls by other names.
WORK = re.compile(r"/models/send/.*|/results/[^/]*/retry|/v1/(?!files(/|$)).*(?<!/cancel)")
READING = ("GET", "HEAD", "OPTIONS")


class Authenticate:
    """Sets the request's `caller`; refuses with 401, 403 or 429."""

    def __init__(self, app: ASGIApp, required: bool) -> None:
        self._app = app
        self._required = required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or OPEN.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        services: Services = scope["state"]["services"]
        caller = ANONYMOUS

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(services.limits.headers(caller))
            await send(message)

        try:
            caller = scope["state"]["caller"] = await self._caller(services, scope)
            _require_scope(caller, scope)
            if caller.limited:
                await services.limits.admit(
                    caller, work=scope["method"] == "POST" and bool(WORK.fullmatch(scope["path"]))
                )
        except AppError as error:
            await error_response(scope["path"], error)(scope, receive, counted)
            return
        await self._app(scope, receive, counted if caller.limited else send)

    async def _caller(self, services: Services, scope: Scope) -> Caller:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
        scheme, _, key = given.partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        # Clients that cannot do without a key are given some word where none is needed.
        if not self._required and not KEY.fullmatch(key):
            return ANONYMOUS
        if not key:
            raise Unauthorized(
                "This service needs an API key: send it as `Authorization: Bearer sk-...`. Whoever runs the service "
                "makes one with `make key NAME=...`.",
                challenge="Bearer",
            )
        return await services.keys.caller(key)


def _require_scope(caller: Caller, scope: Scope) -> None:
    if ADMIN.fullmatch(scope["path"]):
        needed = callers.Scope.ADMIN
    else:
        needed = callers.Scope.READ if scope["method"] in READING else callers.Scope.SUBMIT
    if needed not in caller.scopes:
        has = ", ".join(sorted(caller.scopes))
        raise ScopeMissing(
            f"This needs a key with the scope {needed}, and this one has {has}: have one made with "
            f'`make key NAME=... SCOPES="{has.replace(",", "")} {needed}"`.'
        )
