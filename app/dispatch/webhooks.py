"""Delivers the webhook outbox, beside the job path: a loop, connections and a claim of its own.

A row is claimed with a lease, so a delivery that a dying dispatcher left behind is made again, under the same
`webhook-id`: at least once.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import asyncpg
from pydantic import BaseModel
from pydantic_core import to_json

from app.background import ended
from app.config import Settings
from app.db.engine import Database
from app.errors import DatabaseUnavailable
from app.queue.bulk import statements_of, write_apart
from app.queue.deliveries import Close, DeliveryStore
from app.services.addresses import AddressPolicy
from app.services.outbound import Sender, SendError
from app.services.retention import oldest_kept
from app.services.webhooks import rows_of, secret_of
from app.telemetry import logger
from app.telemetry.metrics import WEBHOOKS

log = logger("webhooks")

CONCURRENCY = 64
PER_HOST = 8
# Well over the 15 s that a try may take.
LEASE_SECONDS = 60.0
# Finished tries are collected this long, so that many share a statement.
GATHER_SECONDS = 0.02
DATABASE_RETRY_SECONDS = 1.0
GIVE_BACK_SECONDS = 3.0
KEPT_DAYS = 7
REMOVE_BATCH = 1000
TIDY_SECONDS = 60.0
# What Standard Webhooks suggests, cut to 72 h.
MINUTE, HOUR = 60.0, 3600.0
PAUSES = (5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 20 * HOUR)
LONGEST_RETRY_AFTER = 24 * HOUR
ASKS_TO_WAIT = frozenset({429, 503})
GONE = 410
LARGEST_PAYLOAD = 256 * 1024
NOT_STORABLE = "The end of this try cannot be stored; its cause is in the log."
# Left out of a payload that would be larger.
BULKY: dict[str, Any] = {"output": None, "outputs": None, "parameters": {}}

Render = Callable[[Mapping[str, Any]], BaseModel]
Claimed = Mapping[str, Any]


def pause_after(tries: int, draw: float | None = None) -> float | None:
    """Seconds until the next try, a tenth less at most so that many do not come at once; None after the last."""
    if tries > len(PAUSES):
        return None
    return PAUSES[tries - 1] * (1 - 0.1 * (random.random() if draw is None else draw))  # noqa: S311 - jitter


def asked_pause(header: str | None) -> float:
    """Seconds that a Retry-After asks for, within a day; 0 where it says nothing that can be read."""
    if header is None:
        return 0.0
    seconds = 0.0
    if header.strip().isdecimal():
        seconds = float(header[:12])
    else:
        with suppress(ValueError):
            moment = parsedate_to_datetime(header)
            aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            seconds = (aware - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def signatures(secrets: list[str], id_: str, timestamp: int, body: bytes) -> str:
    """The webhook-signature header: one `v1` signature for each secret."""
    signed = f"{id_}.{timestamp}.".encode() + body
    made = []
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        made.append("v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode())
    return " ".join(made)


def payload_of(delivery: Claimed, row: Mapping[str, Any] | None, render: Render) -> bytes:
    """What is posted: `data` is the result as GET /results/{id} gives it, names the batch, or stands in the
    delivery.

    A row that is `bulky` comes without what makes it so.
    """
    document: dict[str, Any] = {"type": delivery["event"], "timestamp": delivery["created_at"]}
    if delivery["data"] is not None:
        return to_json(document | {"data": delivery["data"]})
    if row is None:
        return to_json(document | {"data": {"id": f"batch_{delivery['batch_id'].hex}"}})
    data = render(row).model_dump(mode="json")
    if not row["bulky"]:
        whole = to_json(document | {"data": data})
        if len(whole) <= LARGEST_PAYLOAD:
            return whole
    return to_json(document | {"omitted": list(BULKY), "data": data | BULKY})


class Deliverer:
    """`render` makes of a result's row what the API shows of it."""

    def __init__(self, database: Database, settings: Settings, render: Render, sender: Sender) -> None:
        self._database = database
        self._store = DeliveryStore(database)
        self._poll_seconds = settings.poll_seconds
        self._render = render
        self._sender = sender
        self._running: dict[asyncio.Task[None], Claimed] = {}
        self._ends: list[Close] = []
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Delivers until cancelled; what is under way then is given back."""
        try:
            while True:
                self._ended.clear()
                try:
                    await self._write_ends()
                    await self._start_due()
                except DatabaseUnavailable:
                    await asyncio.sleep(DATABASE_RETRY_SECONDS)
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_seconds):
                        await self._ended.wait()
                    await asyncio.sleep(GATHER_SECONDS)
        finally:
            await self._give_back()

    async def _write_ends(self) -> None:
        for batch in statements_of(list(self._ends), CONCURRENCY, lambda end: len(end.error or "")):
            await write_apart(batch, self._close, self._close_plainly)

    async def _close(self, ends: Sequence[Close]) -> None:
        await self._store.close(ends)
        written = set(ends)
        self._ends = [end for end in self._ends if end not in written]

    async def _close_plainly(self, end: Close, error: Exception) -> None:
        """Postgres refuses what the try ended with: that it ended is written all the same, or its lease runs out."""
        log.error("postgres refused the end of a delivery", delivery=end.id, error=repr(error))
        self._ends.remove(end)
        if end.error is not None:
            with suppress(asyncpg.PostgresError):
                await self._store.close([replace(end, error=NOT_STORABLE)])

    async def _start_due(self) -> None:
        free = CONCURRENCY - len(self._running)
        if not free:
            return
        hosts = Counter(delivery["host"] for delivery in self._running.values())
        claimed = await self._store.claim(hosts, per_host=PER_HOST, limit=free, lease_seconds=LEASE_SECONDS)
        if not claimed:
            return
        ids = [each["result_id"] for each in claimed if each["result_id"]]
        rows = await rows_of(self._database, ids, LARGEST_PAYLOAD)
        for delivery in claimed:
            task = asyncio.create_task(self._deliver(delivery, rows.get(delivery["result_id"])))
            self._running[task] = delivery
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._ended.set()

    async def _deliver(self, delivery: Claimed, row: Mapping[str, Any] | None) -> None:
        try:
            end = await self._try(delivery, row)
        except DatabaseUnavailable:
            end = Close(delivery["id"], delivery["tries"], pause=DATABASE_RETRY_SECONDS)
        except Exception:
            log.exception("a defect of the dispatcher ended a delivery", delivery=delivery["id"])
            end = _failed(delivery, "The service failed on this delivery.")
        if end.error is not None:
            log.info("delivery failed", delivery=end.id, tries=end.tries, error=end.error, then_seconds=end.pause)
            WEBHOOKS.labels("given_up" if end.pause is None else "failed").inc()
        elif end.delivered:
            WEBHOOKS.labels("delivered").inc()
        self._ends.append(end)

    async def _try(self, delivery: Claimed, row: Mapping[str, Any] | None) -> Close:
        if row is None and delivery["result_id"] is not None:
            return _given_up(delivery, "The result was removed before its webhook was delivered.")
        secret = delivery["webhook_secret"] or await secret_of(self._store, delivery["owner_id"])
        old = delivery["old_webhook_secret"]
        id_, timestamp = str(delivery["id"]), int(time.time())
        body = payload_of(delivery, row, self._render)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "triton-tickets",
            "webhook-id": id_,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures([secret, old] if old else [secret], id_, timestamp, body),
        }
        try:
            answer = await self._sender.post(delivery["url"], headers, body)
        except SendError as error:
            return _failed(delivery, str(error))
        if 200 <= answer.status < 300:
            return Close(delivery["id"], delivery["tries"], delivered=True)
        if answer.status == GONE:
            return _given_up(delivery, "The receiver answered 410: it wants no more of these.")
        if 300 <= answer.status < 400:
            return _failed(delivery, f"The receiver answered {answer.status}: redirects are not followed.")
        asked = asked_pause(answer.retry_after) if answer.status in ASKS_TO_WAIT else 0.0
        return _failed(delivery, f"The receiver answered {answer.status}.", asked)

    async def _give_back(self) -> None:
        """Makes the deliveries under way due again, for another dispatcher, and writes the ends there are."""
        running, self._running = self._running, {}
        await ended(running)
        written = {end.id for end in self._ends}
        self._ends += [
            Close(each["id"], each["tries"], pause=0.0) for each in running.values() if each["id"] not in written
        ]
        with suppress(DatabaseUnavailable, TimeoutError):
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                await self._write_ends()


def _failed(delivery: Claimed, error: str, asked: float = 0.0) -> Close:
    """To be tried again, not before `asked` seconds, unless that was the last try or 72 h are over by then."""
    pause = pause_after(delivery["tries"])
    if pause is not None:
        pause = max(pause, asked)
        if pause > delivery["seconds_left"]:
            pause = None
    return Close(delivery["id"], delivery["tries"], pause=pause, error=error)


def _given_up(delivery: Claimed, error: str) -> Close:
    return Close(delivery["id"], delivery["tries"], error=error)


async def drop_deliveries_forever(database: Database) -> None:
    """Removes deliveries that ended, a week after they were made."""
    store = DeliveryStore(database)
    while True:
        with suppress(DatabaseUnavailable):
            while await store.remove(oldest_kept(KEPT_DAYS), REMOVE_BATCH) == REMOVE_BATCH:
                pass
        await asyncio.sleep(TIDY_SECONDS)


async def deliver_forever(database: Database, settings: Settings, render: Render) -> None:
    """Runs a Deliverer."""
    policy = AddressPolicy.of(settings.webhook_allow_private, settings.webhook_allow_networks)
    async with Sender(policy, CONCURRENCY) as sender:
        await Deliverer(database, settings, render, sender).run()
