"""What only the server knows of a request, taken where it can still be asked.

- HTTP/1.0 has no chunks: an answer of unknown length ends with its connection. Of uvicorn's two protocols h11 does that
  by itself. httptools, the default, chunks for everybody.
- A body that is here already needs no clock while it is read.
- A head has a bound, in bytes and in time: httptools takes any, and copies what it has with every part of a header.
- Who leaves while a body is read gets no answer, and that is no fault of ours.
- An answer that is all there goes out at once, where uvicorn writes its head and its body.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import lru_cache

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

# In a request's state: all of its body has come.
BODY_HERE = "body_here"
# Of the first line and the headers of a request.
MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30.0
# Of a body that is copied behind its head; to copy a longer one costs more than to write it by itself.
MAX_COPIED_BYTES = 64 * 1024


class HttpProtocol(HttpToolsProtocol):
    """A connection whose requests have heads of up to MAX_HEAD_BYTES, that come within HEAD_SECONDS."""

    _in_head = True
    _head_bytes = 0
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_before = self._in_head
        super().data_received(data)
        if not self._in_head:
            return
        if self._clock is None:
            self._start_clock()
        # What came with the end of the request before is no longer than one read.
        self._head_bytes += len(data) if began_before else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"The request's first line and headers are longer than {MAX_HEAD_BYTES:,} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The request before it is still answered, and nothing is read meanwhile.
            self._start_clock()
        else:
            self._refuse(408, f"The request's first line and headers took longer than {HEAD_SECONDS:g} seconds.")

    def _refuse(self, status: int, detail: str) -> None:
        if not self.transport.is_closing():
            headers = f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(detail)}\r\nconnection: close"
            self.transport.write(STATUS_LINE[status] + f"{headers}\r\n\r\n{detail}".encode("ascii"))
            self.transport.close()


class Application(FastAPI):
    """Outside of all middleware, where `send` is still the server's own."""

    def build_middleware_stack(self) -> ASGIApp:
        """Without FastAPI's own layers, each of which costs all requests: Envelope does their work."""
        app: ASGIApp = self.router
        for layer in reversed(self.user_middleware):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        if isinstance(cycle, RequestResponseCycle):
            scope["state"][BODY_HERE] = not cycle.more_body
            send = _ended_by_close(cycle) if scope["http_version"] == "1.0" else _at_once(cycle)
        with suppress(ClientDisconnect):
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


def _at_once(cycle: RequestResponseCycle) -> Send:
    """Sends what is all there when it begins, as most answers are; the rest, and what is wrong, is for uvicorn.

    A head that names a length waits for its body, so the head of a stream goes out at once.
    """
    head: Message | None = None

    async def send(message: Message) -> None:
        nonlocal head
        if head is None and message["type"] == "http.response.start":
            for name, _ in message.get("headers", ()):
                if name == b"content-length":
                    head = message
                    return
        if head is not None:
            start, head = head, None
            if _sent_whole(cycle, start, message):
                return
            await cycle.send(start)  # type: ignore[arg-type]
        await cycle.send(message)  # type: ignore[arg-type]

    return send


def _sent_whole(cycle: RequestResponseCycle, start: Message, message: Message) -> bool:
    """Does what `cycle.send` would do with both, or nothing and returns False."""
    body: bytes = message.get("body", b"")
    headers = [*cycle.default_headers, *start["headers"]]
    if (
        message.get("more_body")
        or len(body) > MAX_COPIED_BYTES
        or message["type"] != "http.response.body"
        or cycle.response_started
        or cycle.disconnected
        or cycle.access_log
        or cycle.flow.write_paused
        or not cycle.keep_alive
        or cycle.scope["method"] == "HEAD"
        or (b"content-length", b"%d" % len(body)) not in headers
        or HEADER_VALUE_RE.search(b"".join([value for _, value in headers]))
    ):
        return False
    parts = [STATUS_LINE[start["status"]]]
    for name, value in headers:
        field = _field(name)
        if field is None:
            return False
        parts += field, value, b"\r\n"
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(b"".join((*parts, b"\r\n", body)))
    cycle.message_event.set()
    cycle.on_response()
    return True


@lru_cache(maxsize=256)
def _field(name: bytes) -> bytes | None:
    """What stands before the value; None for a name that is for uvicorn to judge."""
    if HEADER_RE.search(name) or name.lower() in (b"connection", b"transfer-encoding"):
        return None
    return name.lower() + b": "
