"""Who may call a route: declared where the route is, checked on the route that matched, before its body is read.

Every route has exactly one declaration among its dependencies, its own or its router's: `dependencies=[READ]`.
The application does not start with a route that has none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Security
from fastapi.params import Depends
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from app.api.body import StrictJsonRoute, receive_body
from app.api.dependencies import Services
from app.api.headers import first_headers
from app.config import KeylessAccess
from app.key_errors import ScopeMissing, Unauthorized
from app.services.callers import ANONYMOUS, LOCAL, Caller, Scope
from app.services.keys import KEY

SCHEME = "key"


@dataclass(frozen=True, slots=True)
class Access:
    """What a route asks of its caller: the `scope` is None where anybody may call it, without a key too.

    `work` makes an engine work, so all limits of the key apply; an `upload` counts as a request and takes a large body.
    """

    scope: Scope | None
    work: bool = False
    upload: bool = False

    def __call__(self) -> None:
        """A dependency that has nothing left to do: GuardedRoute has checked it."""


def _declare(scope: Scope, **kinds: bool) -> Any:
    return Security(Access(scope, **kinds), scopes=[scope])


OPEN: Any = Security(Access(None))
READ = _declare(Scope.READ)
SUBMIT = _declare(Scope.SUBMIT)
WORK = _declare(Scope.SUBMIT, work=True)
UPLOAD = _declare(Scope.SUBMIT, upload=True)
UPLOAD_WORK = _declare(Scope.SUBMIT, upload=True, work=True)
ADMIN = _declare(Scope.ADMIN)


class GuardedRoute(StrictJsonRoute):
    """A route that admits only callers with its declared scope and room in their limits."""

    def __init__(
        self,
        path: str,
        endpoint: Any,
        *,
        dependencies: Sequence[Depends] | None = None,
        openapi_extra: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        declared, others = [], []
        for each in dependencies or ():
            if isinstance(each.dependency, Access):
                declared.append(each.dependency)
            else:
                others.append(each)
        self.access = declared[0] if len(declared) == 1 else None
        # It is checked in `handle`, before FastAPI reads the body and only then solves dependencies.
        extra = {"security": _documented(self.access), **(openapi_extra or {})}
        super().__init__(path, endpoint, dependencies=others, openapi_extra=extra, **options)
        self._fixed_part = path.partition("{")[0]

    def matches(self, scope: Connection) -> tuple[Match, Connection]:
        # A request meets many routes that are not its own, and their patterns take longer to say so.
        return super().matches(scope) if self._fixed_part in scope["path"] else (Match.NONE, {})

    async def authenticate(self, services: Services, scope: Connection) -> Caller:
        """Whose request this is; raises Unauthorized where it is nobody's."""
        return await authenticate(services, scope)

    async def handle(self, scope: Connection, receive: Receive, send: Send) -> None:
        access = self.access
        if access is None:
            raise RuntimeError(f"{self.path} does not declare who may call it")
        offered = not self.methods or scope["method"] in self.methods
        if access.scope is not None:
            services: Services = scope["state"]["services"]
            caller = await self.authenticate(services, scope)
            if offered:
                _require(caller, access.scope)
            await services.limits.admit(
                caller, work=offered and access.work, counts=offered and (access.work or access.upload)
            )
            if offered:
                with services.bodies.share() as share:
                    scope["state"]["share"] = share
                    limited = await receive_body(scope, receive, services.settings, share, upload=access.upload)
                    if limited is not None:
                        await self.app(scope, limited, send)
                return
        await super().handle(scope, receive, send)


def _documented(access: Access | None) -> list[dict[str, list[str]]]:
    """As OpenAPI's `security`: a key with the scope, or none where the service needs none."""
    return [] if access is None or access.scope is None else [{SCHEME: [access.scope.value]}, {}]


async def authenticate(services: Services, scope: Connection) -> Caller:
    """Whose request this is; also sets the request's `caller`.

    Raises:
        Unauthorized: it has no API key that is valid, and needs one.
    """
    key = _given_key(scope)
    if KEY.fullmatch(key):
        caller = await services.keys.caller(key)
    else:
        # Some clients insist on a key: any word is taken for none where none is needed.
        keyless = keyless_caller(services, scope)
        if keyless is None and key:
            keyless = await services.keys.caller(key)
        if keyless is None:
            raise Unauthorized(
                "This service needs an API key: send it as `Authorization: Bearer sk-...`. Whoever runs the service "
                "makes one with `make key NAME=...`. Without a key, only requests from the service's own machine are "
                "answered, sent to a loopback address and through no proxy, and only if AUTH_REQUIRED is not set.",
                challenge="Bearer",
            )
        caller = keyless
    scope["state"]["caller"] = caller
    return caller


def _given_key(scope: Connection) -> str:
    """The bearer token or, as Anthropic's clients send a key, `x-api-key`; a text that may be none."""
    headers = first_headers(scope)
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else ""
    other = headers.get(b"x-api-key", b"").decode("latin-1").strip()
    return other if other and not KEY.fullmatch(token) else token


def keyless_caller(services: Services, scope: Connection) -> Caller | None:
    """The caller of a request without a key; None where it needs one."""
    access = services.settings.keyless_access
    if access is KeylessAccess.NONE:
        return None
    if services.connections.is_local(scope):
        return LOCAL
    return ANONYMOUS if access is KeylessAccess.ANYWHERE else None


def _require(caller: Caller, needed: Scope) -> None:
    if needed in caller.scopes:
        return
    if caller.key_id is None:
        raise ScopeMissing(
            f"This needs a key with the scope {needed}. Without a key, only requests from the service's own machine "
            "may do this, sent to a loopback address on which alone it listens, and through no proxy."
        )
    has = ", ".join(sorted(caller.scopes))
    raise ScopeMissing(
        f"This needs a key with the scope {needed}, and this one has {has}: have one made with "
        f'`make key NAME=... SCOPES="{has.replace(",", "")} {needed}"`.'
    )


async def no_route(scope: Connection, receive: Receive, send: Send) -> None:
    """What has no route is told to nobody without a key."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000, "reason": ""})
        return
    services: Services = scope["state"]["services"]
    await services.limits.admit(await authenticate(services, scope), work=False, counts=False)
    raise HTTPException(404)


def require_declared(app: FastAPI, open_paths: Collection[str | None]) -> None:
    """Raises RuntimeError, naming them, when routes declare nothing; `open_paths` are FastAPI's own."""
    undeclared = []
    for each in iter_route_contexts(app.routes):
        route = each.original_route
        if isinstance(route, GuardedRoute) and route.access is not None:
            continue
        if type(route) is Route and route.path in open_paths:
            continue
        undeclared.append(f"{type(route).__name__} {getattr(route, 'path', '')}")
    if undeclared:
        raise RuntimeError(
            "Each route needs exactly one declaration of app.api.security, e.g. dependencies=[READ], and "
            f"route_class=GuardedRoute. These have none, or several: {', '.join(undeclared)}"
        )
