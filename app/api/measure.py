"""Counts and times every request."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.telemetry.metrics import HTTP_SECONDS, method_label


class Measure:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            # The route's template, not the path: ids would make a series each.
            route = getattr(scope.get("route"), "path", "unmatched")
            HTTP_SECONDS.labels(method_label(scope["method"]), route, status).observe(time.monotonic() - started)
