"""Housekeeping that needs no engine. Runs in every dispatcher; rows that another one holds are skipped."""

import asyncio
from contextlib import suppress

from app.errors import DatabaseUnavailable
from app.queue.store import QueueStore
from app.services.retention import oldest_kept

REMOVE_BATCH = 1000
TIDY_SECONDS = 60.0
DAY_SECONDS = 86_400.0


async def sweep_forever(store: QueueStore, every_seconds: float) -> None:
    """Settles results that expired or were cancelled while nobody ran them."""
    while True:
        with suppress(DatabaseUnavailable):
            while await store.sweep():
                pass
        await asyncio.sleep(every_seconds)


async def tidy_forever(store: QueueStore, retention_days: float | None) -> None:
    """Removes what the retention takes, and Idempotency-Keys that ran out."""
    while True:
        with suppress(DatabaseUnavailable):
            await store.forget_keys()
            if retention_days is not None:
                await remove_old(store, retention_days)
        await asyncio.sleep(TIDY_SECONDS)


async def remove_old(store: QueueStore, retention_days: float) -> None:
    """Removes final results, then contexts without results, older than `retention_days`."""
    limit = oldest_kept(retention_days)
    while await store.remove(limit, retention_days * DAY_SECONDS, REMOVE_BATCH) == REMOVE_BATCH:
        pass
    while await store.remove_contexts(limit, REMOVE_BATCH) == REMOVE_BATCH:
        pass
