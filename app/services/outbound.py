"""HTTP to addresses that users name: only to public ones, and to the very address that was checked.

A name is resolved once per connection, every address it has is judged, and the connection goes to one of them, so
that a second answer of the name server cannot lead elsewhere. TLS still checks the name. No redirects, no proxies.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address

import httpcore
import httpx

from app.services.addresses import Address, AddressPolicy

TIMEOUT_SECONDS = 15.0
CONNECT_SECONDS = 5.0
# A connection serves again where the answer's body is this short and comes this soon.
BODY_BYTES = 16 * 1024
BODY_SECONDS = 1.0
# Shorter than servers usually keep an idle connection.
KEEPALIVE_SECONDS = 3.0

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class SendError(Exception):
    """Nothing was delivered; the text is shown to whoever set the URL."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """`location` is where a redirect leads."""

    status: int
    location: str | None
    body: bytes


class Resolver:
    """getaddrinfo on threads of its own: name servers that hang must not hold up the connections to Postgres."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> list[Address]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [ip_address(str(entry[4][0])) for entry in found]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class PinnedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only."""

    def __init__(self, policy: AddressPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise SendError(f"The name {host} does not resolve.") from None
        if not addresses or not all(map(self._policy.allows, addresses)):
            raise SendError(f"{host} stands for an address that is not public, so nothing is sent there.")
        last: Exception = SendError(f"The name {host} does not resolve.")
        for address in dict.fromkeys(addresses):
            try:
                return await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


@cache
def _authorities() -> ssl.SSLContext:
    """Read once in a process: that takes longer than all else that a dispatcher does at its start."""
    return httpx.create_ssl_context()


class Sender:
    """POSTs, and GETs what is not long. Use it as a context manager."""

    def __init__(
        self, policy: AddressPolicy, connections: int, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._resolver = Resolver(connections)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or _authorities(),
            max_connections=connections,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=PinnedNetwork(policy, resolve or self._resolver),
        )

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._resolver.close()
        await self._pool.aclose()

    async def get(self, url: str, most_bytes: int, seconds: float = TIMEOUT_SECONDS) -> Fetched:
        """The answer, read whole, at the latest after `seconds`.

        Raises:
            SendError: there was none, or it has more than `most_bytes`.
        """
        target = httpx.URL(url)
        body = bytearray()
        try:
            async with asyncio.timeout(seconds), self._request("GET", target, {}, None, seconds) as response:
                async for part in response.aiter_stream():
                    body += part
                    if len(body) > most_bytes:
                        raise SendError(f"{target.host} sent more than {most_bytes:,} bytes.")
                return Fetched(response.status, _header(response, b"location"), bytes(body))
        except (TimeoutError, httpcore.TimeoutException):
            raise SendError(f"{target.host} did not answer within {seconds:g} s.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise SendError(_sentence(target.host, error)) from None

    async def post(self, url: str, headers: dict[str, str], body: bytes, seconds: float = TIMEOUT_SECONDS) -> Answer:
        """The answer's status, at the latest after `seconds`; its body is not kept.

        Raises:
            SendError: there was no answer.
        """
        target = httpx.URL(url)
        answer: Answer | None = None
        request = self._request("POST", target, headers, body, seconds)
        try:
            async with asyncio.timeout(seconds), request as response:
                answer = Answer(response.status, _header(response, b"retry-after"))
                await _read_short(response)
        except (TimeoutError, httpcore.TimeoutException):
            if answer is None:
                raise SendError(f"{target.host} did not answer within {seconds:g} s.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            if answer is None:
                raise SendError(_sentence(target.host, error)) from None
        return answer or Answer(0, None)

    def _request(
        self, method: str, target: httpx.URL, headers: dict[str, str], body: bytes | None, seconds: float
    ) -> contextlib.AbstractAsyncContextManager[httpcore.Response]:
        return self._pool.stream(
            method,
            httpcore.URL(
                scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path or b"/"
            ),
            headers=[(b"Host", target.netloc), *((k.encode(), v.encode()) for k, v in headers.items())],
            content=body,
            extensions={"timeout": {"connect": min(CONNECT_SECONDS, seconds)}},
        )


async def _read_short(response: httpcore.Response) -> None:
    """Reads a short body, so that the connection can be used again; leaving a long one closes it."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            async for part in response.aiter_stream():
                size += len(part)
                if size > BODY_BYTES:
                    return


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


def _sentence(host: str, error: Exception) -> str:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"The certificate of {host} does not hold: {cause.verify_message}."
    if isinstance(cause, ssl.SSLError):
        return f"TLS with {host} failed."
    if isinstance(error, httpcore.ConnectError):
        return f"{host} takes no connection."
    if isinstance(error, httpcore.ProtocolError):
        return f"{host} did not answer in HTTP."
    return f"{host} closed the connection without an answer."
