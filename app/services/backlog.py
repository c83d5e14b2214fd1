"""The gauges that are read from Postgres when somebody scrapes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import asyncpg

from app.background import ended
from app.db.engine import Database
from app.errors import DatabaseUnavailable
from app.queue.backlog import Backlog, read_backlog
from app.services.catalog import Catalog
from app.services.host_gauges import HostGauges
from app.telemetry import logger
from app.telemetry.metrics import DELIVERIES_PENDING, OLDEST_WAIT, PENDING, model_label

log = logger("backlog")

FRESH_SECONDS = 5.0
# Reading takes this part of the time of one connection at most, however much is pending.
MAX_SHARE = 0.05
# A scrape waits no longer for it, and shows what was read before.
PATIENCE_SECONDS = 2.0


class BacklogGauges:
    """Read at most every 5 s, by one query at a time, whoever scrapes; gone while Postgres is away."""

    def __init__(self, database: Database, catalog: Catalog) -> None:
        self._database = database
        self._catalog = catalog
        self._hosts = HostGauges(database)
        self._reading: asyncio.Task[None] | None = None
        self._due = float("-inf")
        # Series of models whose tickets are all done with go to 0 rather than away.
        self._pending: dict[tuple[str, ...], float] = {}
        self._oldest: dict[tuple[str, ...], float] = {}
        self._queued: Counter[str] = Counter()

    async def refresh(self) -> None:
        if self._reading is None and time.monotonic() >= self._due:
            self._reading = asyncio.create_task(self._read())
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=PATIENCE_SECONDS)

    async def queued(self, model: str | None = None) -> int:
        """How many tickets wait, for one model or for all, as read at most a few seconds ago; 0 where none was read."""
        await self.refresh()
        return self._queued.total() if model is None else self._queued[model]

    async def close(self) -> None:
        if self._reading is not None:
            await ended({self._reading})

    async def _read(self) -> None:
        started = time.monotonic()
        try:
            self._show(await read_backlog(self._database))
            await self._hosts.read()
        except (DatabaseUnavailable, asyncpg.PostgresError) as error:
            log.warning("the gauges of the queue cannot be read", error=type(error).__name__)
            for gauge in (PENDING, OLDEST_WAIT, DELIVERIES_PENDING):
                gauge.replace({})
            self._hosts.forget()
        finally:
            now = time.monotonic()
            self._due = now + max(FRESH_SECONDS, (now - started) / MAX_SHARE)
            self._reading = None

    def _show(self, backlog: Backlog) -> None:
        pending = dict.fromkeys(self._pending, 0.0)
        oldest = dict.fromkeys(self._oldest, 0.0)
        for each in backlog.models:
            model = model_label(each.model)
            reason = self._catalog.waiting_reason(each.model)
            counts = [
                ("running", each.running),
                ("backoff" if reason == "queued" else reason, each.backing_off),
                (reason, each.queued),
            ]
            for label, count in counts:
                pending[model, label] = pending.get((model, label), 0.0) + count
            oldest[model,] = max(oldest.get((model,), 0.0), each.oldest)
        self._pending, self._oldest = pending, oldest
        self._queued = Counter({each.model: each.queued + each.backing_off for each in backlog.models})
        PENDING.replace(pending)
        OLDEST_WAIT.replace(oldest)
        DELIVERIES_PENDING.replace({(): float(backlog.deliveries)})
