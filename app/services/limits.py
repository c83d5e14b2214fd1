"""The limits of a key: requests a minute, tickets pending, tokens and dollars a day and a month.

Each process counts for itself at once, and every REFRESH_SECONDS adds its counts to those in Postgres and reads what
the others did: so one process is exact, and several are off by what they let through in that time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg

from app.db.engine import Database
from app.errors import DatabaseUnavailable
from app.key_errors import PendingLimitReached, RequestLimitReached, SpendingLimitReached, TokenLimitReached
from app.services.callers import Caller
from app.services.standing import CAPS, WINDOW_SECONDS, Cap, Standing, duration
from app.telemetry import logger

log = logger("limits")

REFRESH_SECONDS = 0.5
# A standing read longer ago than this is read again before it decides.
STALE_SECONDS = 2.0
# Before a ticket is refused Postgres is asked again, but not more often than this.
RECOUNT_SECONDS = 0.1
# A key that was not used for this long costs no more queries.
IDLE_SECONDS = 30.0
PENDING_AGAIN_SECONDS = 1.0

COUNT = """
INSERT INTO request_counts AS c (key_id, second, requests)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::int[])
ON CONFLICT (key_id, second) DO UPDATE SET requests = c.requests + excluded.requests
"""
# Pending tickets are counted as far as the limit, and no row is read for a limit the key does not have.
READ = """
SELECT k.key_id,
    (SELECT array_agg(ARRAY[c.second, c.requests]) FROM request_counts c
     WHERE c.key_id = k.key_id AND c.second >= $5) AS requests,
    (SELECT count(*) FROM (
        SELECT FROM results r WHERE r.key_id = k.key_id AND r.status = 'pending' AND r.id <> ALL ($6::uuid[])
        LIMIT k.pending_limit
    ) p) AS pending,
    spent.*
FROM unnest($1::uuid[], $2::int[], $3::int[], $4::date[]) AS k(key_id, owner_id, pending_limit, since)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(d.tokens) FILTER (WHERE d.today), 0)::bigint AS tokens_per_day,
           coalesce(sum(d.tokens), 0)::bigint AS tokens_per_month,
           coalesce(sum(d.cost) FILTER (WHERE d.today), 0) AS dollars_per_day,
           coalesce(sum(d.cost), 0) AS dollars_per_month
    FROM (
        SELECT u.prompt_tokens + u.completion_tokens AS tokens, u.cost,
               u.day = (now() AT TIME ZONE 'UTC')::date AS today
        FROM usage u WHERE u.owner_id = k.owner_id AND u.day >= k.since AND u.key_id = k.key_id
    ) d
) spent
"""


# The limits whose use is counted here.
COUNTED = ("requests_per_minute", "pending_limit", *CAPS)


class Limits:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._standings: dict[UUID, Standing] = {}
        self._reading = asyncio.Lock()

    async def admit(self, caller: Caller, *, work: bool, counts: bool, requests: int = 1) -> None:
        """Lets requests pass: those that count are requests of the minute, for those that make `work` all limits hold.

        Raises:
            RequestLimitReached, TokenLimitReached, SpendingLimitReached, PendingLimitReached: nothing was counted.
            DatabaseUnavailable: what the key has used is not known yet.
        """
        if caller.key_id is None or not caller.limited:
            return
        standing = await self._standing(caller, caller.key_id)
        if work:
            await self._require_room(caller, caller.key_id, standing, 1)
        if work and caller.capped:
            _require_under_caps(standing.caps(datetime.now(UTC)))
        # From the look to the count nothing else runs: not one more gets through.
        limit, now = caller.requests_per_minute if counts else None, time.time()
        if limit is not None and standing.window.used(now) + requests > limit:
            seconds = standing.window.until_one_leaves(now)
            raise RequestLimitReached(
                f"This key may make {limit:,} requests in {WINDOW_SECONDS} seconds; there is room again in "
                f"{duration(seconds)}." + (f" {requests} more were asked for." if requests > 1 else ""),
                seconds,
                "requests_per_minute",
            )
        if limit is not None:
            standing.window.count(now, requests)

    @asynccontextmanager
    async def storing(self, caller: Caller, ids: Collection[UUID]) -> AsyncIterator[None]:
        """Around the statement that stores these tickets: holds their places among the pending ones of the key.

        Raises:
            PendingLimitReached: there are not that many.
        """
        if caller.key_id is None or caller.pending_limit is None:
            yield
            return
        standing = await self._standing(caller, caller.key_id)
        await self._require_room(caller, caller.key_id, standing, len(ids))
        held = set(ids)
        standing.pending.storing |= held
        try:
            yield
        finally:
            standing.pending.finish(held)

    async def _require_room(self, caller: Caller, key_id: UUID, standing: Standing, tickets: int) -> None:
        limit = caller.pending_limit
        if limit is None or standing.pending.used + tickets <= limit:
            return
        await self._read({key_id: standing}, RECOUNT_SECONDS)
        if standing.pending.used + tickets > limit:
            raise PendingLimitReached(
                f"This key may have {limit:,} tickets pending, and {standing.pending.used:,} are: wait for some to "
                f"end, or cancel them. {tickets:,} more {'was' if tickets == 1 else 'were'} asked for.",
                PENDING_AGAIN_SECONDS,
                "pending_limit",
            )

    def headers(self, caller: Caller) -> dict[str, str]:
        """How much is left of the limits, in OpenAI's words; nothing for a key without any."""
        standing = None if caller.key_id is None else self._standings.get(caller.key_id)
        if standing is None:
            return {}
        found = {}
        if (limit := caller.requests_per_minute) is not None:
            now = time.time()
            found["x-ratelimit-limit-requests"] = str(limit)
            found["x-ratelimit-remaining-requests"] = str(max(0, limit - standing.window.used(now)))
            found["x-ratelimit-reset-requests"] = duration(standing.window.until_empty(now))
        if caller.capped:
            now_utc = datetime.now(UTC)
            tokens = [cap for cap in standing.caps(now_utc) if not cap.in_dollars]
            if tokens:
                cap = min(tokens, key=lambda each: each.limit - each.used)
                found["x-ratelimit-limit-tokens"] = str(cap.limit)
                found["x-ratelimit-remaining-tokens"] = str(max(0, cap.limit - cap.used))
                found["x-ratelimit-reset-tokens"] = duration((cap.ends_at - now_utc).total_seconds())
        return found

    async def caps(self, caller: Caller) -> list[Cap]:
        """What the key may spend, and has."""
        if caller.key_id is None or not caller.capped:
            return []
        return (await self._standing(caller, caller.key_id)).caps(datetime.now(UTC))

    async def used(self, keys: Sequence[Mapping[str, Any]]) -> dict[UUID, dict[str, float]]:
        """What each key, a row of `Keys.list`, has used of the limits it has, by the names of these.

        Requests of the last minute are those that the processes have told of each other.
        """
        bounded = {key["id"]: key for key in keys if any(key[name] is not None for name in COUNTED)}
        month = datetime.now(UTC).date().replace(day=1)
        capped = [month if any(key[name] is not None for name in CAPS) else None for key in bounded.values()]
        async with self._database.hot() as connection:
            rows = await connection.fetch(
                READ,
                list(bounded),
                [key["owner_id"] for key in bounded.values()],
                [key["pending_limit"] or 0 for key in bounded.values()],
                capped,
                int(time.time()) - WINDOW_SECONDS,
                [],
            )
        found = {}
        for row in rows:
            requests = sum(count for _, count in row["requests"] or ())
            used = {"requests_per_minute": requests, "pending_limit": row["pending"], **{n: row[n] for n in CAPS}}
            limits = bounded[row["key_id"]]
            found[row["key_id"]] = {name: used[name] for name in COUNTED if limits[name] is not None}
        return found

    async def share(self) -> None:
        """Keeps what this process and the others know of each other fresh, for ever."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            idle = time.monotonic() - IDLE_SECONDS
            for key_id in [id_ for id_, each in self._standings.items() if each.touched_at < idle]:
                if not self._standings[key_id].pending.storing:
                    del self._standings[key_id]
            if not self._standings:
                continue
            try:
                await self._read(self._standings)
            except (DatabaseUnavailable, asyncpg.PostgresError) as error:
                log.warning("limits are those of this process alone", error=type(error).__name__)

    async def _standing(self, caller: Caller, key_id: UUID) -> Standing:
        standing = self._standings.get(key_id)
        if standing is None:
            standing = Standing(caller)
            self._standings[key_id] = standing
        standing.touched_at = time.monotonic()
        if standing.touched_at - standing.read_at > STALE_SECONDS:
            await self._read({key_id: standing}, STALE_SECONDS)
        return standing

    async def _read(self, standings: dict[UUID, Standing], older_than: float = 0.0) -> None:
        """Sends the counts of those read longer ago than `older_than` seconds and takes in what Postgres knows."""
        async with self._reading:
            started = time.monotonic()
            due = {id_: each for id_, each in standings.items() if started - each.read_at >= older_than}
            if not due:
                return
            counts = sorted((id_, second, n) for id_, each in due.items() for second, n in each.window.send().items())
            async with self._database.hot() as connection:
                if counts:
                    await connection.execute(COUNT, *_columns(counts))
                    for each in due.values():
                        each.window.sent()
                counted = {id_: set(each.pending.stored) for id_, each in due.items()}
                today = datetime.now(UTC).date()
                rows = await connection.fetch(
                    READ,
                    list(due),
                    [each.caller.owner_id for each in due.values()],
                    [each.caller.pending_limit or 0 for each in due.values()],
                    [each.counted_since(today) for each in due.values()],
                    int(time.time()) - WINDOW_SECONDS,
                    [id_ for each in due.values() for id_ in each.pending.storing],
                )
            for row in rows:
                due[row["key_id"]].told(row, counted[row["key_id"]], started)


def _columns(rows: Iterable[tuple[UUID, int, int]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _require_under_caps(caps: list[Cap]) -> None:
    """Raises TokenLimitReached or SpendingLimitReached for the one that ends last."""
    for cap in caps:
        if not cap.is_reached:
            continue
        seconds = (cap.ends_at - datetime.now(UTC)).total_seconds()
        period = "day" if cap.name.endswith("_per_day") else "month"
        ends = f"The next {period} begins in {duration(seconds)}, at midnight UTC."
        if cap.in_dollars:
            raise SpendingLimitReached(
                f"This key may spend ${cap.limit:,.2f} a {period} and has spent ${cap.used:,.2f}. {ends}",
                seconds,
                cap.name,
            )
        raise TokenLimitReached(
            f"This key may use {cap.limit:,} tokens a {period} and has used {cap.used:,}. {ends}", seconds, cap.name
        )
