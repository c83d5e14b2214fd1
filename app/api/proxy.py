"""What a trusted proxy says of a request, and the path this service is found below: applied before all else.

The headers stay: `app.api.local` takes no request for local that has one, whoever sent it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

FORWARDED = b"x-forwarded-"
PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)
HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)


class Proxied:
    """Takes `X-Forwarded-For` and `-Proto` (by uvicorn's middleware), `-Host` and `-Prefix` from `trusted` addresses.

    Where a header has several values, the last is taken: the proxy that speaks to this process has added it.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: Sequence[str]) -> None:
        self._app = app
        self._root_path = root_path
        self._headers: Any = ProxyHeadersMiddleware(cast(Any, app), list(trusted))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, root = self._app, self._root_path
        if scope["type"] in ("http", "websocket"):
            # Most requests come without: then there is nothing to look for.
            if any(name.startswith(FORWARDED) for name, _ in scope["headers"]):
                app = self._headers
                client = scope.get("client")
                if client is not None and client[0] in self._headers.trusted_hosts:
                    root = _last(scope, b"x-forwarded-prefix", PREFIX) or root
                    host = _last(scope, b"x-forwarded-host", HOST)
                    if host:
                        others = [pair for pair in scope["headers"] if pair[0] != b"host"]
                        scope["headers"] = [(b"host", host.encode()), *others]
            if root:
                _put_below(scope, root)
        await app(scope, receive, send)


def _last(scope: Scope, header: bytes, form: re.Pattern[str]) -> str:
    """The header's last value, without a slash at its end; empty where it is not of this form."""
    given = b",".join(value for name, value in scope["headers"] if name == header).decode("latin-1")
    value = given.rpartition(",")[2].strip().rstrip("/")
    return value if form.fullmatch(value) else ""


def _put_below(scope: Scope, root: str) -> None:
    """ASGI's paths include the root path, whether or not the proxy has taken it away."""
    path = scope["path"]
    if path == root:
        scope["path"] = root + "/"
    elif not path.startswith(root + "/"):
        scope["path"] = root + path
    scope["root_path"] = root
