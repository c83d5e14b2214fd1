"""The service as its users meet it: over HTTP, in this process or in processes that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from app import worker
from app.api.application import HttpProtocol
from app.config import Settings
from app.main import Server, create_app

ROOT = Path(__file__).resolve().parents[1]


class Service:
    """A client of one API."""

    def __init__(self, client: httpx.AsyncClient, settings: Settings) -> None:
        self.client = client
        self.settings = settings

    async def context(self, content: str = "Tell me a story.", **fields: Any) -> str:
        answer = await self.client.post("/contexts/", json={"content": content, **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def send(
        self, context_id: str | None = None, model: str = "tiny", *, prompt: str = "Tell me a story.", **options: Any
    ) -> str:
        context_id = context_id or await self.context(prompt)
        answer = await self.client.post(f"/models/send/{model}/{context_id}", json=options)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["result_id"])

    async def result(self, result_id: str, wait: int | None = None) -> dict[str, Any]:
        headers = {} if wait is None else {"Prefer": f"wait={wait}"}
        answer = await self.client.get(f"/results/{result_id}", headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def settled(self, result_id: str, seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            result = await self.result(result_id, wait=5)
            if result["status"] != "pending":
                return result
        raise AssertionError(f"still pending after {seconds} s: {result}")

    async def run(
        self, prompt: str = "Tell me a story.", model: str = "tiny", *, stream: bool = False, **parameters: Any
    ) -> dict[str, Any]:
        """Sends a prompt and waits for the end."""
        return await self.settled(await self.send(prompt=prompt, model=model, parameters=parameters, stream=stream))

    async def attempts(self, result_id: str) -> list[dict[str, Any]]:
        answer = await self.client.get(f"/results/{result_id}/attempts")
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        return found


async def eventually(
    condition: Callable[[], Awaitable[Any]], what: str, seconds: float = 60, pause: float = 0.02
) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while True:
        value = await condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(pause)


@asynccontextmanager
async def running_api(settings: Settings, host: str = "127.0.0.1") -> AsyncIterator[Service]:
    """The real API behind a real socket that listens on `host`, in this event loop."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.bind((host, 0))
    config = uvicorn.Config(
        create_app(settings),
        http=HttpProtocol,
        proxy_headers=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=3,
    )
    server = Server(config)
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[listening]))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"

    async def started() -> bool:
        if task.done():
            await task
        return server.started

    try:
        # The certificates that are never needed take longer to read than all else of a client.
        async with httpx.AsyncClient(base_url=url, timeout=70, trust_env=False, verify=False) as client:
            await eventually(started, "the API starts")
            yield Service(client, settings)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        await task


class _no_signals:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


@asynccontextmanager
async def running_dispatcher(settings: Settings) -> AsyncIterator[None]:
    """A dispatcher in this event loop."""
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(settings, stop))
    try:
        yield
    finally:
        stop.set()
        await task


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that say the same."""
    given = settings.model_dump(mode="json", exclude_none=True)
    return {name.upper(): ",".join(value) if isinstance(value, list) else str(value) for name, value in given.items()}


class Process:
    """The API or a dispatcher as a process of its own, to be killed, frozen and asked to stop."""

    def __init__(
        self, module: str, settings: Settings, log: Path, *, python: str = sys.executable, **environment: str
    ) -> None:
        self.log = log
        values = environment_of(settings) | {"LOG_LEVEL": "INFO"}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [python, "-m", module],
                cwd=ROOT,
                env={**os.environ, **values, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def ended(self, seconds: float = 60) -> int:
        async def code() -> str | None:
            found = self.process.poll()
            return None if found is None else str(found)

        return int(await eventually(code, "the process ends", seconds))

    async def says(self, text: str, seconds: float = 60) -> None:
        async def said() -> bool:
            return text in self.log.read_text()

        await eventually(said, f"{text!r} in the log", seconds)

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
