"""A process of the service that writes down when it did what: MARKED=app.worker MARKS=FILE python -m bench.marks

A line for each statement, notification and request to an engine: seconds of the machine's monotonic clock when it
began and when it ended, and its name.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from asyncpg.connection import Connection

from app.engines.base import Request
from app.engines.triton.client import TritonEngine
from app.queue import slots
from app.queue.notify import Listener
from app.queue.statements.claim import CLAIM, CLAIM_ONLY
from app.queue.statements.settle import SETTLE
from app.queue.statements.submit import FLUSH, SUBMIT_UNFLUSHED
from app.services import results
from app.tasks.chunks import Chunk

NAMES = {
    SUBMIT_UNFLUSHED: "submit",
    FLUSH: "flush",
    CLAIM: "claim",
    CLAIM_ONLY: "claim",
    **dict.fromkeys(SETTLE.values(), "settle"),
    slots.END: "slot",
    results.GET: "read",
}
marks = Path(os.environ["MARKS"]).open("w", buffering=1)  # noqa: SIM115 - as long as the process


def mark(began: float, name: str) -> None:
    marks.write(f"{began:.6f} {time.monotonic():.6f} {name}\n")


def mark_statements(method: str) -> None:
    original = getattr(Connection, method)

    async def marked(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return await original(self, query, *arguments, **options)
        finally:
            mark(began, NAMES.get(query, "other: " + " ".join(query.split())[:60]))

    setattr(Connection, method, marked)


def mark_notifications() -> None:
    original = Listener._received

    def marked(self: Listener, connection: Any, pid: int, channel: str, payload: str) -> None:
        mark(time.monotonic(), channel)
        original(self, connection, pid, channel, payload)

    Listener._received = marked  # type: ignore[method-assign]


def mark_engines() -> None:
    original = TritonEngine.run

    async def marked(self: TritonEngine, request: Request) -> AsyncGenerator[Chunk]:
        began = time.monotonic()
        async for chunk in original(self, request):
            if chunk.final:
                mark(began, "engine")
            yield chunk

    TritonEngine.run = marked  # type: ignore[method-assign]


if __name__ == "__main__":
    for method in ("fetch", "fetchrow", "fetchval", "execute"):
        mark_statements(method)
    mark_notifications()
    mark_engines()
    sys.argv = [os.environ["MARKED"]]
    runpy.run_module(os.environ["MARKED"], run_name="__main__")
