"""Server-sent events: the answer that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

from fastapi import Response
from starlette.types import Receive, Scope, Send

from app.background import ended

KEEP_ALIVE_SECONDS = 15.0
# One line end: an empty line after it would be an event without data to clients that dispatch on every empty line once
# they have seen an `id`, as OpenAI's Python client does.
KEEP_ALIVE = b": keep-alive\n"


def event_bytes(data: bytes, event: str | None = None, id_: int | str | None = None) -> bytes:
    """One event; `data` is a single line, as JSON is."""
    head = b"" if id_ is None else b"id: %s\n" % str(id_).encode()
    if event is not None:
        head += b"event: %s\n" % event.encode()
    return b"%sdata: %s\n\n" % (head, data)


class EventStream(Response):
    """Sends what `body` yields, and a comment line when it has nothing to say for a while.

    A client that reads slowly holds up only its own `body`; one that goes away ends it, and then `left` is called.
    """

    media_type = "text/event-stream"

    def __init__(self, body: AsyncGenerator[bytes], left: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._body = body
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.Lock()
        clock = asyncio.get_running_loop().time
        spoken = clock()

        async def write(part: bytes) -> None:
            nonlocal spoken
            async with sending:
                await send({"type": "http.response.body", "body": part, "more_body": True})
                spoken = clock()

        async def speak() -> None:
            async with aclosing(self._body) as body:
                async for part in body:
                    await write(part)

        async def keep_alive() -> None:
            while True:
                await asyncio.sleep(max(0.0, spoken + KEEP_ALIVE_SECONDS - clock()))
                if clock() - spoken >= KEEP_ALIVE_SECONDS:
                    await write(KEEP_ALIVE)

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["state"].get("head"):
            # Nothing is followed, so nobody who leaves ends it.
            await self._body.aclose()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        speaking = asyncio.create_task(speak())
        leaving = asyncio.create_task(leave())
        others = [asyncio.create_task(keep_alive()), leaving]
        try:
            await asyncio.wait([speaking, *others], return_when=asyncio.FIRST_COMPLETED)
            if self._left is not None and leaving.done() and not speaking.done():
                await self._left()
        finally:
            await ended((speaking, *others))
            if not speaking.cancelled():
                with suppress(OSError):
                    speaking.result()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
