"""An HTTP server that does what a test wants, down to the bytes: it cuts, stalls, lies and floods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

END = b"data: [DONE]\n\n"


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Behaviour = Callable[[Asked], AsyncIterator[bytes]]


@dataclass
class FaultyServer:
    """`behaviour` gives the bytes of each answer, head included; `models` is answered by itself."""

    port: int
    behaviour: Behaviour
    models: list[str] = field(default_factory=lambda: ["m"])
    asked: list[Asked] = field(default_factory=list)
    # Requests whose client went away before the answer's end, and bytes that were written.
    left: int = 0
    written: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            asked = await _read(reader)
            if asked is None:
                return
            if asked.path == "/v1/models" and self.models:
                writer.write(answer(200, json.dumps({"data": [{"id": name} for name in self.models]})))
                await writer.drain()
                return
            self.asked.append(asked)
            gone = asyncio.create_task(reader.read(1))
            try:
                async for part in self.behaviour(asked):
                    writer.write(part)
                    self.written += len(part)
                    await writer.drain()
                    if gone.done() or writer.is_closing():
                        self.left += 1
                        return
            finally:
                gone.cancel()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        finally:
            self.open.discard(writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    line = (await reader.readline()).decode()
    if not line:
        return None
    method, path, _ = line.split(" ", 2)
    headers = {}
    while header := (await reader.readline()).decode().strip():
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, body, reader)


@asynccontextmanager
async def faulty_server(behaviour: Behaviour) -> AsyncIterator[FaultyServer]:
    server = FaultyServer(0, behaviour)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for writer in server.open:
            writer.transport.abort()


def answer(status: int, body: str | bytes = b"", kind: str = "application/json", **headers: str) -> bytes:
    """A whole answer."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(data)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def head(kind: str = "text/event-stream") -> bytes:
    """The head of an answer that ends with its connection."""
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text(words: str, **fields: Any) -> bytes:
    """A part of a chat's answer."""
    return event({"choices": [{"index": 0, "delta": {"content": words, **fields}, "finish_reason": None}]})


def finish(reason: str = "stop", **usage: Any) -> bytes:
    last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    return last + (event({"choices": [], "usage": usage}) if usage else b"") + END


def always(*parts: bytes) -> Behaviour:
    async def behaviour(_: Asked) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return behaviour


def then_silence(*parts: bytes) -> Behaviour:
    """These, and then nothing until the client goes."""

    async def behaviour(asked: Asked) -> AsyncIterator[bytes]:
        for part in parts:
            yield part
        while True:
            await asyncio.sleep(0.05)
            # Comments keep a connection alive and are no token.
            yield b": still here\n\n" if parts else b""

    return behaviour


def endless(start: bytes, part: bytes) -> Behaviour:
    async def behaviour(_: Asked) -> AsyncIterator[bytes]:
        yield start
        while True:
            yield part

    return behaviour
