"""Reading JSON bodies strictly, and the limit on their size."""

from __future__ import annotations

import asyncio
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.application import BODY_HERE
from app.api.arguments import Arguments, NotPlain, arguments_of
from app.api.body_room import Share
from app.api.coding import LARGE, coding_of, decompressed, too_large
from app.api.headers import first_headers
from app.config import Settings
from app.errors import AppError, BodiesFull, BodyTooLarge, BodyTooSlow, UnsupportedMediaType
from app.storable import TooManyValues, parsed_json

# What a form with a file holds beyond the file: boundaries, headers, the other fields.
FORM_BYTES = 64 * 1024
# A refused body is read and thrown away up to this many times the limit.
LINGER_BODIES = 8
LINGER_SECONDS = 2.0
LARGE_JSON_BYTES = 256 * 1024
# A body comes at least as fast, in bytes a second.
SLOWEST = 1024
# Digits; Python refuses to read numbers of thousands.
LONGEST_LENGTH = 18


class StrictJsonRequest(Request):
    # What is raised instead of FastAPI's words for a body that cannot be read.
    refusal: BodyTooLarge | None = None

    async def body(self) -> bytes:
        """Starlette's goes through a stream of pieces, also where one message has it all."""
        if not hasattr(self, "_body"):
            parts = []
            more = True
            while more:
                message = await self.receive()
                if message["type"] != "http.request":
                    raise ClientDisconnect
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
            self._body = b"".join(parts)
        return self._body

    async def json(self) -> Any:
        """The body as `parsed_json` has it."""
        # Some editors, and PowerShell, begin a text with a byte order mark.
        body = (await self.body()).removeprefix(BOM_UTF8)
        try:
            if len(body) <= LARGE_JSON_BYTES:
                return parsed_json(body)
            # The parser keeps the loop waiting also from a thread, but only while it parses.
            return await asyncio.to_thread(parsed_json, body)
        except TooManyValues as error:
            self.refusal = BodyTooLarge(f"The body {error}: send less in one request.")
            raise json.JSONDecodeError(str(error), "", 0) from None
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class StrictJsonRoute(APIRoute):
    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        # In which FastAPI closes the files of a form.
        self.app = AsyncExitStackMiddleware(self.app)
        if (arguments := arguments_of(self.dependant)) is not None:
            self.app = _read_first(arguments, endpoint, self.app)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            strictly = StrictJsonRequest(request.scope, request.receive)
            try:
                return await handler(strictly)
            except RequestValidationError:
                if strictly.refusal is not None:
                    raise strictly.refusal from None
                raise
            except HTTPException as error:
                # FastAPI's words for whatever ends the reading of a body.
                if isinstance(error.__cause__, AppError):
                    raise error.__cause__ from None
                raise

        return strict


def _read_first(
    arguments: Arguments, endpoint: Callable[..., Coroutine[Any, Any, Response]], fastapi: ASGIApp
) -> ASGIApp:
    """Calls the endpoint with its arguments; what is not plain goes through `fastapi`, which reads the body again."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = StrictJsonRequest(scope, receive)
        try:
            values = await arguments.read(request)
        except NotPlain:
            body: bytes | None = getattr(request, "_body", None)
            await fastapi(scope, receive if body is None else _replayed(body, receive), send)
            return
        response = await endpoint(**values)
        await response(scope, receive, send)

    return app


async def receive_body(
    scope: Scope, receive: Receive, settings: Settings, share: Share, *, upload: bool
) -> Receive | None:
    """What the route reads its body from: never more than the limit, which for an `upload` is that of files.
    None when the client went away.

    The request's `share` holds the body, unless it is an upload: as long as it is declared to be, or as it comes.

    A body of undeclared length is read here, unless it is an upload, so that nothing behind sees half of one. What
    is compressed is read and decompressed here; the limit holds before and after.

    Raises:
        UnsupportedMediaType: it is compressed in a way that is not known here, or is an upload.
        MalformedBody: it is not what its Content-Encoding says.
        BodiesFull: other bodies leave it no room.
        BodyTooLarge: also later, from what is returned, for an upload of undeclared length.
        BodyTooSlow: it does not come; also later, from what is returned.
    """
    headers = first_headers(scope)
    if not scope["state"].get(BODY_HERE):
        receive = _timely(receive, settings.body_seconds)
    most = settings.max_file_bytes + FORM_BYTES if upload else settings.max_body_bytes
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and (len(declared) > LONGEST_LENGTH or int(declared) > most):
        await _swallow(receive, most)
        raise too_large(most, upload)
    coding = coding_of(scope["headers"]) if b"content-encoding" in headers else ""
    if coding and upload:
        raise UnsupportedMediaType(f"A file is taken as it is: send it without Content-Encoding, which is {coding!r}.")
    if upload:
        return _counted(receive, most)
    if declared.isdigit():
        try:
            share.hold(int(declared))
        except BodiesFull:
            await _swallow(receive, most)
            raise
    if coding:
        compressed = await _whole(receive, most, share)
        if compressed is None:
            return None
        if len(compressed) > LARGE:
            # Decompressed beside the others, it may come to as much meanwhile.
            share.hold(most)
        body = await decompressed(compressed, coding, most)
        share.hold(len(body))
        return _replayed(body, receive)
    if declared or scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
        return receive
    whole = await _whole(receive, most, share)
    return None if whole is None else _replayed(whole, receive)


def _timely(receive: Receive, seconds: float) -> Receive:
    """Raises BodyTooSlow when a body pauses for `seconds`, or comes more slowly than `SLOWEST` for longer than that."""
    clock = asyncio.get_running_loop().time
    started = clock()
    received = 0
    complete = False

    async def timely() -> Message:
        nonlocal received, complete
        if complete:
            return await receive()
        try:
            now = clock()
            async with asyncio.timeout_at(min(now + seconds, started + seconds + received / SLOWEST)):
                message = await receive()
        except TimeoutError:
            raise BodyTooSlow(
                f"Of the body {received:,} bytes came, and then too little for {seconds:g} seconds; nothing was kept: "
                "send it again, over a faster connection or in smaller requests.",
                headers={"Connection": "close"},
            ) from None
        received += len(message.get("body", b""))
        complete = message["type"] != "http.request" or not message.get("more_body")
        return message

    return timely


async def _whole(receive: Receive, most: int, share: Share) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            await _swallow(receive, most)
            raise too_large(most, upload=False)
        if size > share.held:
            try:
                share.hold(size)
            except BodiesFull:
                parts.clear()
                await _swallow(receive, most)
                raise
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    replayed = False

    async def replay() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _counted(receive: Receive, most: int) -> Receive:
    """Raises BodyTooLarge, in whoever reads the body, once it has more than `most` bytes."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            await _swallow(receive, most)
            raise too_large(most, upload=True)
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
