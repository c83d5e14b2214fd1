"""Housekeeping that needs no engine. Runs in every dispatcher; rows that another one holds are skipped."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from app.errors import DatabaseUnavailable
from app.queue.audit import AuditStore
from app.queue.events import EventStore
from app.queue.store import QueueStore
from app.services.retention import oldest_kept

REMOVE_BATCH = 1000
TIDY_SECONDS = 60.0
# Streams are refused by then, so no reader meets half of the events.
EVENTS_MARGIN_SECONDS = 60.0
DAY_SECONDS = 86_400.0


async def sweep_forever(store: QueueStore, every_seconds: float) -> None:
    """Settles results that expired or were cancelled while nobody ran them."""
    while True:
        with suppress(DatabaseUnavailable):
            while await store.sweep():
                pass
        await asyncio.sleep(every_seconds)


async def tidy_forever(store: QueueStore, retention_days: float | None) -> None:
    """Removes what the retention takes and what ran out, and merges the counts of usage."""
    while True:
        with suppress(DatabaseUnavailable):
            await store.forget_keys()
            await store.forget_requests()
            await store.compact_usage()
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


async def trim_audit_forever(audit: AuditStore, retention_days: float | None) -> None:
    """Removes entries of the audit log that are older than `retention_days`."""
    while True:
        if retention_days is not None:
            with suppress(DatabaseUnavailable):
                await trim_audit(audit, retention_days)
        await asyncio.sleep(TIDY_SECONDS)


async def trim_audit(audit: AuditStore, retention_days: float) -> None:
    before = datetime.now(UTC) - timedelta(days=retention_days)
    while await audit.remove(before, REMOVE_BATCH) == REMOVE_BATCH:
        pass


async def drop_events_forever(events: EventStore, kept_seconds: float) -> None:
    """Removes the stored events of results that ended some time ago."""
    while True:
        with suppress(DatabaseUnavailable):
            await drop_events(events, kept_seconds + EVENTS_MARGIN_SECONDS)
        await asyncio.sleep(TIDY_SECONDS)


async def drop_events(events: EventStore, kept_seconds: float) -> int:
    """One pass over all that is older, in batches; returns how many were removed."""
    moment: datetime | None = datetime.fromtimestamp(0, UTC)
    removed = 0
    while moment is not None:
        dropped, moment = await events.drop(moment, kept_seconds)
        removed += dropped
    return removed
