"""A small HTTP/1.1 load: python -m bench.http_load HOST PORT PATH CONNECTIONS REQUESTS STATUS [TOKENS]

POSTs a ticket for one token, or for TOKENS, over kept-alive connections, expects STATUS, prints the requests per
second. A client library would cost more than the service that is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

BODY = '{"parameters": {"max_tokens": 1}}'


def body_of(tokens: int) -> str:
    return json.dumps({"parameters": {"max_tokens": tokens, "ignore_eos": True}})


class Connection:
    """One kept-alive connection."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        return cls(host, *await asyncio.open_connection(host, port))

    async def ask(self, method: str, path: str, body: str = "", headers: str = "") -> tuple[int, bytes]:
        """Sends a request; returns status and body of the answer."""
        self._writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{headers}\r\n{body}".encode()
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        return int(head[9:12]), await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


async def load(
    host: str, port: int, path: str, connections: int, requests: int, status: int, body: str = BODY
) -> float:
    left = requests

    async def user() -> None:
        nonlocal left
        connection = await Connection.open(host, port)
        while left > 0:
            left -= 1
            got, answer = await connection.ask("POST", path, body)
            if got != status:
                raise SystemExit(f"unexpected answer {got}: {answer.decode()}")
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(connections)))
    return requests / (time.perf_counter() - started)


if __name__ == "__main__":
    host, port, path, connections, requests, status, *tokens = sys.argv[1:]
    body = body_of(int(tokens[0])) if tokens else BODY
    print(uvloop.run(load(host, int(port), path, int(connections), int(requests), int(status), body)))
