"""A small HTTP/1.1 load: python -m bench.http_load HOST PORT PATH CONNECTIONS REQUESTS STATUS

POSTs without a body over kept-alive connections, expects STATUS, prints the requests per second.
"""

import asyncio
import sys
import time

import uvloop


async def load(host: str, port: int, path: str, connections: int, requests: int, status: int) -> float:
    message = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()
    expected = f"HTTP/1.1 {status} ".encode()
    left = requests

    async def user() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection(host, port)
        while left > 0:
            left -= 1
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(expected):
                raise SystemExit(f"unexpected answer: {head.decode()}")
            length = head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]
            await reader.readexactly(int(length))
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(connections)))
    return requests / (time.perf_counter() - started)


if __name__ == "__main__":
    host, port, path, connections, requests, status = sys.argv[1:]
    print(uvloop.run(load(host, int(port), path, int(connections), int(requests), int(status))))
