"""What the controller of hosts last decided, as tickets tell it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from app.db.engine import Database
from app.queue.pools import PoolStore

FRESH_SECONDS = 1.0
# Without a word of the controller for so long, it does not run.
SILENT_SECONDS = 60.0
SILENT = "Nothing starts hosts now: the controller, `python -m app.capacity`, does not run."


class Plans:
    """Read at most once a second, however many ask."""

    def __init__(self, database: Database) -> None:
        self._store = PoolStore(database)
        self._pools: dict[str, Mapping[str, Any]] = {}
        self._read = float("-inf")
        self._reading = asyncio.Lock()

    async def of(self, model: str) -> dict[str, Any] | None:
        """What the ticket's `waiting` says besides its place; None where there is nothing to say."""
        async with self._reading:
            if time.monotonic() - self._read > FRESH_SECONDS:
                self._pools = {each: pool for pool in await self._store.list() for each in pool["models"]}
                self._read = time.monotonic()
        pool = self._pools.get(model)
        if pool is None:
            return None
        if (pool["now"] - pool["seen_at"]).total_seconds() > SILENT_SECONDS:
            return {"detail": SILENT}
        told = next((each for each in pool["plan"].get("waiting", ()) if each["model"] == model), None)
        if told is None:
            return None
        ready_at = told["ready_at"]
        return {
            "reason": told["reason"],
            "detail": told["message"],
            "host": told["host"] or None,
            "step": told["step"] or None,
            "estimated_ready_at": None if ready_at is None else datetime.fromtimestamp(ready_at, UTC),
        }
