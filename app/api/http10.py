"""HTTP/1.0 has no chunks: an answer of unknown length ends with its connection. uvicorn chunks for everybody."""

from __future__ import annotations

from typing import Any, cast

from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class HttpProtocol(HttpToolsProtocol):
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = _ended_by_close(cycle, app)
        super()._start_asgi_task(cycle, app)


def _ended_by_close(cycle: RequestResponseCycle, app: Any) -> Any:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        length_known = False

        async def unchunked(message: Message) -> None:
            nonlocal length_known
            if message["type"] == "http.response.start":
                length_known = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                if not length_known:
                    cycle.chunked_encoding = False
            elif not length_known:
                # Each part is as long as it is.
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, unchunked)

    return cast(Any, wrapped)
