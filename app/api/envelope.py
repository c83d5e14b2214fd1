"""Around every request, in one layer, because each layer costs all requests: its id, its measure, its limits, HEAD.

- `X-Request-Id` is on every answer: the client's own where it is one that can be shown, else a new one.
- Every request is counted and timed.
- A path with control characters is refused before routing.
- On the way out it says what is left of the key's limits.
- HEAD is wherever GET is: the request is routed, admitted and answered as a GET, and its body is left out.
- What is raised is answered by the application's handlers; a defect is raised again, for the server's log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import getrandbits
from typing import Any

from fastapi import Request, Response
from prometheus_client import Histogram
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import Services
from app.api.headers import first_headers
from app.errors import MalformedPath
from app.services.callers import Caller
from app.telemetry.metrics import HTTP_SECONDS, method_label

REQUEST_ID = b"x-request-id"
_PRESENTABLE = re.compile(rb"[\x21-\x7e]{1,200}")
# Control characters, and what Unicode takes for the end of a line.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Envelope:
    def __init__(self, app: ASGIApp, handlers: Mapping[Any, Callable[[Request, Any], Any]]) -> None:
        """`handlers` by the kinds of exceptions, Exception among them; each is a coroutine function."""
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0
        state = scope.setdefault("state", {})
        id_ = first_headers(scope).get(REQUEST_ID, b"")
        if not _PRESENTABLE.fullmatch(id_):
            id_ = b"req_%032x" % getrandbits(128)
        state["request_id"] = id_.decode()
        method = scope["method"]
        head = method == "HEAD"
        if head:
            # A copy: the server looks at the method of its own, and sends no body.
            scope = {**scope, "method": "GET"}
            state["head"] = True

        async def enclosed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                caller: Caller | None = state.get("caller")
                if caller is not None and caller.limited:
                    services: Services = state["services"]
                    MutableHeaders(scope=message).update(services.limits.headers(caller))
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID, id_)]
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            if CONTROL.search(scope["path"]):
                raise MalformedPath(
                    "The path holds a control character, raw or as %00 to %1F, %7F or %C2%80 to %C2%9F."
                )
            await self._app(scope, receive, enclosed)
        except ClientDisconnect:
            raise
        except Exception as error:
            if status:
                raise
            await self._answer(error, scope, receive, enclosed)
        finally:
            # The route's template, not the path: ids would make a series each.
            route = getattr(scope.get("route"), "path", "unmatched")
            _seconds(method_label(method), route, status or 500).observe(time.monotonic() - started)

    async def _answer(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        kind = next(each for each in type(error).__mro__ if each in self._handlers)
        response: Response = await self._handlers[kind](Request(scope), error)
        await response(scope, receive, send)
        if kind is Exception:
            raise error


# As many as there are series; looking one up by its labels costs more than adding to it.
@lru_cache(maxsize=4096)
def _seconds(method: str, route: str, status: int) -> Histogram:
    return HTTP_SECONDS.labels(method, route, status)
