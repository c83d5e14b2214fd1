"""A receiver of webhooks: a real HTTP server that does what its path says."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from tests.service import eventually


@dataclass
class Hook:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """`/ok` takes all; `/fail/N` refuses the first N of each id; `/status/N` answers so; `/hang` never answers;
    `/flood` answers 200 with a body without an end."""

    url: str = ""
    hooks: list[Hook] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)
    hanging: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def at(self, path: str) -> list[Hook]:
        return [hook for hook in self.hooks if hook.path == path]

    async def has(self, count: int, path: str = "/ok", seconds: float = 60) -> list[Hook]:
        async def there() -> bool:
            return len(self.at(path)) >= count

        await eventually(there, f"{count} at {path}", seconds)
        return self.at(path)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        hook = Hook(scope["path"], headers, body)
        self.hooks.append(hook)
        what, _, number = scope["path"].strip("/").partition("/")
        self.tries[hook.id] += 1
        status, extra = 204, []
        if what == "hang":
            self.hanging += 1
            await self.released.wait()
        elif what == "fail":
            status = 500 if self.tries[hook.id] <= int(number) else 200
        elif what == "status":
            status = int(number)
        elif what == "busy":
            status, extra = 503, [(b"retry-after", number.encode())]
        elif what == "redirect":
            status, extra = 307, [(b"location", f"{self.url}/ok".encode())]
        await send({"type": "http.response.start", "status": 200 if what == "flood" else status, "headers": extra})
        if what == "flood":
            # Ends when the other side closes the connection: uvicorn then takes no more of it.
            while (await self._sent(send)) and not self.released.is_set():
                continue
        await send({"type": "http.response.body", "body": b""})

    async def _sent(self, send: Any) -> bool:
        self.tries["parts"] += 1
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await asyncio.sleep(0)
        return self.tries["parts"] < 1000


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(receiver, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    config.load()
    if tls is not None:
        config.ssl = tls
    receiver.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]))

    async def started() -> bool:
        return server.started

    await eventually(started, "the receiver starts")
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.should_exit = True
        await task
