"""HTTP as it is written, byte for byte: no client normalises the path."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """Of the error, in either form."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return None
        document = document.get("error", document) if isinstance(document, dict) else {}
        code = document.get("code") if isinstance(document, dict) else None
        return code if isinstance(code, str) else None


@dataclass(frozen=True, slots=True)
class RawRequest:
    method: str
    target: bytes
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None

    def encoded(self, host: str) -> bytes:
        body = b"" if self.body is None else json.dumps(self.body).encode()
        headers = {"Host": host} | self.headers
        if self.body is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return self.method.encode() + b" " + self.target + b" HTTP/1.1\r\n" + lines.encode() + b"\r\n" + body


class RawClient:
    """One connection, opened again when the server ends it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: RawRequest) -> Answer:
        for last in (False, True):
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            try:
                writer.write(request.encoded(f"{self._host}:{self._port}"))
                answer = await asyncio.wait_for(self._read(reader, request.method), 20)
            except (asyncio.IncompleteReadError, ConnectionError):
                # A connection that was kept open may have ended meanwhile.
                await self._close()
                if last:
                    raise
                continue
            if answer.headers.get("connection") == "close":
                await self._close()
            return answer
        raise AssertionError("unreachable")

    async def _read(self, reader: asyncio.StreamReader, method: str) -> Answer:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in head[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        status = int(head[0].split()[1])
        body = b""
        if method != "HEAD" and status not in (204, 304):
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await reader.readline(), 16):
                    body += await reader.readexactly(size)
                    await reader.readline()
                await reader.readline()
            else:
                body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(status, headers, body)

    async def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def __aenter__(self) -> RawClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()


async def ask_all(host: str, port: int, requests: list[RawRequest], connections: int = 8) -> list[Answer]:
    """The answers in the order of the requests, asked over several connections."""
    answers: list[Answer | None] = [None] * len(requests)
    left = iter(enumerate(requests))

    async def work() -> None:
        async with RawClient(host, port) as client:
            for place, request in left:
                answers[place] = await client.ask(request)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(work())
    return [answer for answer in answers if answer is not None]
