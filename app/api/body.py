"""Reading JSON bodies strictly, and the limit on their size."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import error_response
from app.errors import BodyTooLarge

# A refused body is read and thrown away up to this many times the limit.
LINGER_BODIES = 8
LINGER_SECONDS = 2.0
# Digits; Python refuses to read numbers of thousands.
LONGEST_LENGTH = 18


class StrictJsonRequest(Request):
    async def json(self) -> Any:
        """The body as JSON: no NaN, no lone surrogates, bounded nesting and numbers."""
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class StrictJsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return strict


class BodyLimit:
    """Refuses request bodies over `max_bytes` with 413, counted while they arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int, uploads: Mapping[str, int] | None = None) -> None:
        """`uploads` are paths with limits of their own, whose bodies are not held here."""
        self._app = app
        self._max_bytes = max_bytes
        self._uploads = uploads or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        upload = self._uploads.get(scope["path"]) if scope["method"] == "POST" else None
        largest = upload or self._max_bytes
        if declared.isdigit() and (len(declared) > LONGEST_LENGTH or int(declared) > largest):
            await self._refuse(scope, receive, send)
            return
        if upload is not None:
            await self._app(scope, _counted(receive, upload), send)
            return
        if declared or scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        # No declared length (chunked): read it here, so that nothing behind sees half a body.
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                await self._refuse(scope, receive, send)
                return
            if not message.get("more_body"):
                break
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": b"".join(parts), "more_body": False}

        await self._app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        upload = self._uploads.get(scope["path"]) if scope["method"] == "POST" else None
        await _swallow(receive, upload or self._max_bytes)
        response = error_response(scope["path"], _too_large(upload or self._max_bytes, upload is not None))
        response.headers["connection"] = "close"
        await response(scope, receive, send)


def _counted(receive: Receive, most: int) -> Receive:
    """Raises BodyTooLarge, in whoever reads the body, once it has more than `most` bytes."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            await _swallow(receive, most)
            raise _too_large(most, upload=True)
        return message

    return counted


async def _swallow(receive: Receive, largest: int) -> None:
    """A client still sending would see its connection reset instead of the answer: take what is under way."""
    swallowed = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while swallowed < largest * LINGER_BODIES:
                message = await receive()
                swallowed += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    break


def _too_large(most: int, upload: bool) -> BodyTooLarge:
    name = "MAX_FILE_BYTES" if upload else "MAX_BODY_BYTES"
    return BodyTooLarge(
        f"The body is larger than {most:,} bytes; send less, or raise {name}.", headers={"Connection": "close"}
    )
