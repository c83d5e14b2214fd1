"""A server that answers over HTTP, JSON or a stream of events, with bounds on time and memory."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import urlencode

import httpx
from pydantic_core import from_json, to_json

from app.engines.base import RETRY, Endpoint, EngineError, Request
from app.engines.http_faults import cannot_be_read, classify_answer, classify_transport

CONNECT_SECONDS = 5.0
# Kept open between two requests; many servers close theirs after 5 s.
KEEPALIVE_SECONDS = 4.0
# One event of a stream, or one line of it.
MAX_EVENT_BYTES = 4 * 1024 * 1024
MAX_JSON_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
# How long the end of a stream is waited for after its last event, so that the connection can be used again.
LAST_READ_SECONDS = 0.5
END = b"[DONE]"


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class Clock:
    """The time-outs of one request: until the first token, between two, and for the whole, in seconds."""

    def __init__(self, first: float, between: float, total: float) -> None:
        self._now = asyncio.get_running_loop().time
        self._between = between
        self._silent_seconds = first
        self._silent_until = self._now() + first
        self._end = self._now() + total

    def progress(self) -> None:
        self._silent_seconds = self._between
        self._silent_until = self._now() + self._between

    def queued(self, patience: float = 0.0) -> None:
        """The server has it in a queue of its own: the first token is due from now on, or after `patience` seconds."""
        self._silent_until = self._now() + max(self._silent_seconds, patience)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """
        Raises:
            EngineError: what is waited for within did not come in time.
        """
        try:
            # One whose time is up has its turn even where all that is awaited is there already.
            if self._now() >= min(self._silent_until, self._end):
                raise TimeoutError
            async with asyncio.timeout_at(min(self._silent_until, self._end)):
                yield
        except TimeoutError:
            raise self._expired() from None

    def _expired(self) -> EngineError:
        if self._end <= self._silent_until:
            return EngineError("run_timeout", "The generation took longer than one attempt may.", RETRY)
        return EngineError(
            "idle_timeout",
            f"The engine generated nothing for {self._silent_seconds:g} seconds.",
            RETRY,
            server_fault=True,
        )


class HttpConnection:
    """To an endpoint whose address is a URL; paths are appended to it. The credential goes into each request.

    With `basic`, a credential of the form `user:password` is sent as basic auth; otherwise it is a bearer token.
    """

    def __init__(self, endpoint: Endpoint, prefix: str = "", *, basic: bool = False) -> None:
        self._endpoint = endpoint
        self._basic = basic
        self._base = endpoint.address.rstrip("/") + prefix
        self._client = self._connect()

    def _connect(self) -> httpx.AsyncClient:
        encrypted = self._base.startswith("https:")
        return httpx.AsyncClient(
            verify=_tls() if encrypted else False,
            # A proxy of the environment is meant for what is outside.
            trust_env=encrypted,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=self._endpoint.timeouts.connect or CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEPALIVE_SECONDS),
            # What is compressed has no size until it is read. Another instance of this service goes on otherwise.
            headers={"Accept-Encoding": "identity", "X-Cancel-On-Disconnect": "true"},
        )

    async def reconnect(self) -> None:
        old, self._client = self._client, self._connect()
        await old.aclose()

    async def close(self) -> None:
        await self._client.aclose()

    def clock(self, request: Request) -> Clock:
        """The server's own time-outs where it has some, else the service's."""
        own = self._endpoint.timeouts
        between = own.between_tokens or request.idle_timeout
        return Clock(own.first_token or request.idle_timeout, between, own.total or request.run_timeout)

    async def get(self, path: str, timeout: float) -> Any:
        """The JSON of an answer; `timeout` in seconds.

        Raises:
            EngineError: there is none.
        """
        clock = Clock(timeout, timeout, timeout)
        async with self._open("GET", path, None, clock) as response:
            return _json(await _read(response, MAX_JSON_BYTES, clock))

    async def check(self, path: str, timeout: float) -> None:
        """Whether it answers well, whatever it says.

        Raises:
            EngineError: it does not.
        """
        clock = Clock(timeout, timeout, timeout)
        async with self._open("GET", path, None, clock) as response:
            await _read(response, MAX_ERROR_BYTES, clock)

    async def post(self, path: str, body: Any, clock: Clock) -> Any:
        """The JSON of an answer.

        Raises:
            EngineError: there is none.
        """
        async with self._open("POST", path, body, clock) as response:
            return _json(await _read(response, MAX_JSON_BYTES, clock))

    async def post_form(self, path: str, fields: Mapping[str, str], clock: Clock) -> None:
        """Sends a form, as a browser does; cookies that it brings are kept for later requests.

        Raises:
            EngineError: it was refused.
        """
        async with self._open("POST", path, fields, clock, form=True) as response:
            await _read(response, MAX_JSON_BYTES, clock)

    async def events(self, path: str, body: Any, clock: Clock, *, method: str = "POST") -> AsyncGenerator[Any]:
        """The JSON of each server-sent event, or of the whole answer where the server does not stream.

        The clock is the caller's to move on: only it knows which events are progress. Closing the iterator closes the
        connection.

        Raises:
            EngineError: the request was refused, or the stream broke or is none.
        """
        async with self._open(method, path, body, clock) as response:
            if "json" in response.headers.get("content-type", ""):
                yield _json(await _read(response, MAX_JSON_BYTES, clock))
                return
            async with aclosing(_event_data(response, clock)) as events:
                async for data in events:
                    if data == END:
                        await _read_to_end(response, events)
                        return
                    yield _json(data)

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, body: Any, clock: Clock, *, form: bool = False
    ) -> AsyncIterator[httpx.Response]:
        headers, content = {}, None
        if body is not None:
            headers = {"Content-Type": "application/x-www-form-urlencoded" if form else "application/json"}
            content = urlencode(body).encode() if form else to_json(body)
        headers |= self._endpoint.authorization(basic=self._basic)
        try:
            request = self._client.build_request(method, self._base + path, content=content, headers=headers)
            async with clock.running():
                response = await self._client.send(request, stream=True)
            try:
                if response.status_code != 200:
                    raise classify_answer(response, await _read(response, MAX_ERROR_BYTES, clock, cut=True))
                yield response
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise classify_transport(error) from None


async def _chunks(response: httpx.Response, clock: Clock) -> AsyncGenerator[bytes]:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise cannot_be_read("it is compressed although that was not asked for")
    # Closed with the response.
    chunks = response.aiter_raw()
    while True:
        async with clock.running():
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield chunk


async def _read(response: httpx.Response, limit: int, clock: Clock, *, cut: bool = False) -> bytes:
    """The body, at most `limit` bytes of it: with `cut`, the rest is left, else it is refused."""
    body = bytearray()
    async with aclosing(_chunks(response, clock)) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > limit:
                if cut:
                    return bytes(body[:limit])
                raise cannot_be_read(f"it is longer than {limit:,} bytes")
    return bytes(body)


async def _event_data(response: httpx.Response, clock: Clock) -> AsyncGenerator[bytes]:
    """The data of each server-sent event; its other fields mean nothing to engines, and comments keep alive."""
    rest = bytearray()
    data: list[bytes] = []
    size = 0
    async with aclosing(_chunks(response, clock)) as chunks:
        async for chunk in chunks:
            rest += chunk
            *lines, last = rest.split(b"\n")
            rest = bytearray(last)
            for line in lines:
                line = line.removesuffix(b"\r")  # noqa: PLW2901
                if line.startswith(b"data:"):
                    data.append(bytes(line[5:].removeprefix(b" ")))
                    size += len(line)
                elif not line and data:
                    yield b"\n".join(data)
                    data, size = [], 0
                if size > MAX_EVENT_BYTES:
                    break
            if size + len(rest) > MAX_EVENT_BYTES:
                raise cannot_be_read(f"one of its events is longer than {MAX_EVENT_BYTES:,} bytes")
    if data:
        yield b"\n".join(data)


async def _read_to_end(response: httpx.Response, events: AsyncGenerator[bytes]) -> None:
    """Nothing of worth follows the last event, but a connection that was read to its end is used again."""
    try:
        async with asyncio.timeout(LAST_READ_SECONDS):
            async for _ in events:
                pass
    except (TimeoutError, EngineError, httpx.HTTPError):
        await response.aclose()


def _json(data: bytes) -> Any:
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError:
        raise cannot_be_read("it is not JSON") from None
