"""What only the server knows of a request, taken where it can still be asked.

- HTTP/1.0 has no chunks: an answer of unknown length ends with its connection. Of uvicorn's two protocols h11 does that
  by itself. httptools, the default, chunks for everybody.
- A body that is here already needs no clock while it is read.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

# In a request's state: all of its body has come.
BODY_HERE = "body_here"


class Application(FastAPI):
    """Outside of all middleware, where `send` is still the server's own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        if isinstance(cycle, RequestResponseCycle):
            scope["state"][BODY_HERE] = not cycle.more_body
            if scope["http_version"] == "1.0":
                send = _ended_by_close(cycle)
        await super().__call__(scope, receive, send)


def _ended_by_close(cycle: RequestResponseCycle) -> Send:
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
        await cycle.send(message)  # type: ignore[arg-type]

    return unchunked
