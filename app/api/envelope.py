"""Around every request, in one layer, because each layer costs all requests: its id, its measure, its limits, HEAD.

- `X-Request-Id` is on every answer: the client's own where it is one that can be shown, else a new one.
- Every request is counted and timed.
- A path with control characters is refused before routing.
- On the way out it says what is left of the key's limits.
- HEAD is wherever GET is: the request is routed, admitted and answered as a GET, and its body is left out.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from random import getrandbits

from prometheus_client import Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import Services
from app.api.headers import first_headers
from app.api.problems import error_response
from app.errors import MalformedPath
from app.services.callers import Caller
from app.telemetry.metrics import HTTP_SECONDS, method_label

REQUEST_ID = b"x-request-id"
_PRESENTABLE = re.compile(rb"[\x21-\x7e]{1,200}")
# Control characters, and what Unicode takes for the end of a line.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Envelope:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500
        # What fails behind all middleware is answered outside of this one.
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
                error = MalformedPath(
                    "The path holds a control character, raw or as %00 to %1F, %7F or %C2%80 to %C2%9F."
                )
                await error_response(scope, error)(scope, receive, enclosed)
            else:
                await self._app(scope, receive, enclosed)
        finally:
            # The route's template, not the path: ids would make a series each.
            route = getattr(scope.get("route"), "path", "unmatched")
            _seconds(method_label(method), route, status).observe(time.monotonic() - started)


# As many as there are series; looking one up by its labels costs more than adding to it.
@lru_cache(maxsize=4096)
def _seconds(method: str, route: str, status: int) -> Histogram:
    return HTTP_SECONDS.labels(method, route, status)
