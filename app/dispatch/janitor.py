"""Housekeeping that needs no engine: results that expired or were cancelled while nobody ran them."""

import asyncio

from app.errors import DatabaseUnavailable
from app.queue.store import QueueStore


async def sweep_forever(store: QueueStore, every_seconds: float) -> None:
    """Runs in every dispatcher; rows another one holds are skipped."""
    while True:
        try:
            while await store.sweep():
                pass
        except DatabaseUnavailable:
            pass
        await asyncio.sleep(every_seconds)
