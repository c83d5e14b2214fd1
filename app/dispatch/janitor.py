"""Housekeeping that needs no engine. Runs in every dispatcher; rows that another one holds are skipped."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from app.config import Settings
from app.db.ids import FIRST_ID
from app.errors import DatabaseUnavailable
from app.queue.audit import AuditStore
from app.queue.events import EventStore
from app.queue.hosts import HostStore
from app.queue.slots import SlotStore
from app.queue.store import QueueStore
from app.queue.unkept import UnkeptStore
from app.queue.words import WordStore
from app.services.conversations import Conversations
from app.services.retention import oldest_kept

REMOVE_BATCH = 1000
MAX_CONTEXTS_KEPT = 10 * REMOVE_BATCH
WORDS_SECONDS = 5.0
# A statement of more holds up who meets it on a small machine, and saves nothing.
WORDS_BATCH = 25
TIDY_SECONDS = 60.0
# Streams are refused by then, so no reader meets half of the events.
EVENTS_MARGIN_SECONDS = 60.0
# So long an answer that is not kept waits for whoever holds a connection for it.
DELIVERY_SECONDS = 60.0
DAY_SECONDS = 86_400.0


def housekeeping(
    store: QueueStore,
    slots: SlotStore,
    unkept: UnkeptStore,
    conversations: Conversations,
    audit: AuditStore,
    events: EventStore,
    hosts: HostStore,
    words: WordStore,
    settings: Settings,
) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    """What there is to do for ever, by name; each is a task of its own, so that a defect of one stops no other."""
    events_kept = settings.stream_retention_seconds + EVENTS_MARGIN_SECONDS
    work: list[tuple[str, float, Callable[[], Awaitable[object]]]] = [
        ("sweep", settings.poll_seconds, partial(sweep, store)),
        ("idempotency keys", TIDY_SECONDS, store.forget_keys),
        ("request counts", TIDY_SECONDS, store.forget_requests),
        ("usage", TIDY_SECONDS, store.compact_usage),
        ("server slots", TIDY_SECONDS, slots.forget),
        ("conversations", TIDY_SECONDS, partial(conversations.catch_up, DELIVERY_SECONDS)),
        ("unkept results", TIDY_SECONDS, partial(forget_unkept, unkept, DELIVERY_SECONDS)),
        ("events", TIDY_SECONDS, partial(drop_events, events, events_kept)),
        ("words", WORDS_SECONDS, partial(add_words, words)),
    ]
    retention = Retention(store)
    # By settings that may change, and may say that all is kept.
    old: list[tuple[str, str, Callable[[float], Awaitable[object]]]] = [
        ("retention", "result_retention_days", retention.remove_old),
        ("old conversations", "result_retention_days", conversations.remove_old),
        ("audit", "audit_retention_days", partial(trim_audit, audit)),
        ("old hosts", "host_retention_days", partial(remove_hosts, hosts)),
    ]
    work += [(name, TIDY_SECONDS, partial(_by_age, settings, setting, remove)) for name, setting, remove in old]
    return [(name, partial(_repeat, step, seconds)) for name, seconds, step in work]


async def _by_age(settings: Settings, setting: str, remove: Callable[[float], Awaitable[object]]) -> None:
    days = getattr(settings, setting)
    if days is not None:
        await remove(days)


async def _repeat(step: Callable[[], Awaitable[object]], every_seconds: float) -> None:
    while True:
        with suppress(DatabaseUnavailable):
            await step()
        await asyncio.sleep(every_seconds)


async def sweep(store: QueueStore) -> None:
    """Settles results that expired or were cancelled while nobody ran them."""
    while await store.sweep():
        pass


async def forget_unkept(unkept: UnkeptStore, after_seconds: float) -> None:
    """Removes the texts of results that are not kept and ended `after_seconds` ago: their answers were not fetched."""
    while ids := await unkept.left_behind(after_seconds, REMOVE_BATCH):
        await unkept.forget(ids)


async def add_words(words: WordStore) -> None:
    """Makes what ended ready for searches, and rests as long as it worked: a long history takes half a core."""
    added = WORDS_BATCH
    while added == WORDS_BATCH:
        started = time.monotonic()
        added = await words.add(WORDS_BATCH)
        await asyncio.sleep(time.monotonic() - started)


class Retention:
    """Removes final results, then contexts, comparisons and chats without results, older than so many days."""

    def __init__(self, store: QueueStore) -> None:
        self._store = store
        self._after = FIRST_ID

    async def remove_old(self, days: float) -> None:
        """One pass, in batches. It ends at MAX_CONTEXTS_KEPT contexts that stay; the next one looks at those behind."""
        limit = oldest_kept(days)
        while await self._store.remove(limit, days * DAY_SECONDS, REMOVE_BATCH) == REMOVE_BATCH:
            pass
        kept = 0
        while kept < MAX_CONTEXTS_KEPT:
            looked, removed = await self._store.remove_contexts(self._after, limit, REMOVE_BATCH)
            if len(looked) < REMOVE_BATCH:
                self._after = FIRST_ID
                break
            self._after = looked[-1]
            kept += len(looked) - removed
        while await self._store.remove_comparisons(limit, REMOVE_BATCH) == REMOVE_BATCH:
            pass
        while await self._store.remove_chats(days * DAY_SECONDS, REMOVE_BATCH) == REMOVE_BATCH:
            pass


async def trim_audit(audit: AuditStore, retention_days: float) -> None:
    """Removes entries of the audit log that are older than `retention_days`."""
    before = datetime.now(UTC) - timedelta(days=retention_days)
    while await audit.remove(before, REMOVE_BATCH) == REMOVE_BATCH:
        pass


async def remove_hosts(hosts: HostStore, retention_days: float) -> None:
    """Removes rented hosts that ended longer ago than that, and their events; the ledger keeps what they cost."""
    while await hosts.remove(retention_days * DAY_SECONDS, REMOVE_BATCH) == REMOVE_BATCH:
        pass


async def drop_events(events: EventStore, kept_seconds: float) -> int:
    """One pass over all that is older, in batches; returns how many were removed."""
    moment: datetime | None = datetime.fromtimestamp(0, UTC)
    removed = 0
    while moment is not None:
        dropped, moment = await events.drop(moment, kept_seconds)
        removed += dropped
    return removed
