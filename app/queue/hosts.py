"""All SQL of `hosts`; that of what they cost is in ledger.py.

The leader writes, in transactions that its token fences (leader.py); admins write what they ask for. A charge is
committed before its host is asked for, and ends when the provider is known not to have the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

from app.db.engine import Database
from app.queue.leader import fenced
from app.queue.ledger import (
    ALONE,
    CHARGE,
    CHARGE_STORAGE,
    DOLLARS_SINCE,
    END_CHARGES,
    END_STORAGE,
    OPEN_PRICE,
    OVERSPENT,
    SPENT,
    Limit,
    Overspent,
)

Row = Mapping[str, Any]

_COST = DOLLARS_SINCE.format(since="c.from_at")
_VIEW = f"""
SELECT h.*, (SELECT coalesce(sum({_COST}), 0) FROM host_charges c WHERE c.host_id = h.id) AS cost, now() AS now
FROM hosts h
"""
LIVE = _VIEW + "WHERE h.ended_at IS NULL ORDER BY h.id"
RECENT = _VIEW + "WHERE h.id < $2 ORDER BY h.id DESC LIMIT $1"
READ = _VIEW + "WHERE h.id = $1"
BY_LABELS = "SELECT label, pool, provider_id, created_at, ended_at FROM hosts WHERE label = ANY ($1::text[])"
EVENTS = "SELECT at, state, reason, progress FROM host_events WHERE host_id = $1 ORDER BY id"

EVENTS_OF = """
SELECT host_id, at, state, reason, progress FROM host_events WHERE host_id = ANY ($1) ORDER BY id
"""

RESERVE = """
WITH host AS (
    INSERT INTO hosts (pool, provider, label, offer, machine, gpu, hourly_price, storage_price, spot, models, revision,
                       state, reason)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'wanted', $12)
    RETURNING *
), event AS (
    INSERT INTO host_events (host_id, state, reason) SELECT id, state, reason FROM host
), charge AS (
    INSERT INTO host_charges (host_id, from_at, pool, hourly_price)
    SELECT id, least($13::timestamptz, now()), pool, hourly_price FROM host
)
SELECT *, 0::float8 AS cost, now() AS now FROM host
"""
# One that has ended stays as it is.
MOVE = """
WITH moved AS (
    UPDATE hosts SET state = $2, reason = $3, progress = '', progress_at = now(), state_since = now(),
        provider_id = coalesce($4, provider_id), server_id = coalesce($5, server_id), address = coalesce($6, address),
        ready_at = CASE WHEN $2 = 'ready' THEN coalesce(ready_at, now()) ELSE ready_at END
    WHERE id = $1 AND ended_at IS NULL AND state <> $2
    RETURNING id, state, reason
), event AS (
    INSERT INTO host_events (host_id, state, reason) SELECT id, state, reason FROM moved
)
SELECT true FROM moved
"""
PROGRESS = """
WITH said AS (
    UPDATE hosts SET progress = $2, progress_at = now() WHERE id = $1 AND ended_at IS NULL RETURNING id, state
)
INSERT INTO host_events (host_id, state, progress) SELECT id, state, $2 FROM said WHERE $3
"""
FAIL = """
UPDATE hosts SET failure = $2, failed_at = now(), failed_in = state, machine_failed = $3
WHERE id = $1 AND failure IS NULL AND ended_at IS NULL
"""
TAKEN = "UPDATE hosts SET taken = true WHERE id = $1 AND ended_at IS NULL"
KNOWN_AS = "UPDATE hosts SET provider_id = $2 WHERE id = $1"
REPRICE = "UPDATE hosts SET hourly_price = $2 WHERE id = $1"
SERVED_AT = "UPDATE hosts SET server_id = $2, address = $3 WHERE id = $1"
END = """
WITH ended AS (
    UPDATE hosts SET state = CASE WHEN failure IS NULL THEN 'gone' ELSE 'failed' END, reason = $2, ended_at = now(),
        state_since = now(), progress = ''
    WHERE id = $1 AND ended_at IS NULL
    RETURNING id, state, reason
), event AS (
    INSERT INTO host_events (host_id, state, reason) SELECT id, state, reason FROM ended
)
SELECT true FROM ended
"""

# With this part of its slots taken, what a host does is what it can do. Looks further apart than this say nothing.
FULL, FULL_SECONDS = 0.9, 60
WAS_FULL = f"w.is_full AND h.full_at > now() - make_interval(secs => {FULL_SECONDS})"
# What was done on the servers of hosts. One that has work has had a request just now.
COUNT_WORK = f"""
WITH work AS (
    SELECT h.id, count(*) FILTER (WHERE x.token IS NOT NULL AND x.until > now()) AS in_flight,
           sum(x.attempts)::bigint AS generations, sum(x.completion_tokens)::bigint AS completion_tokens,
           sum(x.gpu_seconds) AS busy_seconds,
           count(*) FILTER (WHERE x.token IS NOT NULL AND x.until > now()) >= {FULL} * s.concurrency AS is_full
    FROM hosts h JOIN servers s ON s.id = h.server_id JOIN server_slots x ON x.server = s.address
    WHERE h.ended_at IS NULL AND h.server_id IS NOT NULL
    GROUP BY h.id, s.id
), counted AS (
    UPDATE hosts h SET generations = w.generations, completion_tokens = w.completion_tokens,
        busy_seconds = w.busy_seconds, full_at = CASE WHEN w.is_full THEN now() END,
        full_seconds = h.full_seconds + CASE WHEN {WAS_FULL} THEN extract(epoch FROM now() - h.full_at) ELSE 0 END,
        full_tokens = h.full_tokens + CASE WHEN {WAS_FULL} THEN w.completion_tokens - h.completion_tokens ELSE 0 END,
        last_request_at = CASE WHEN w.in_flight > 0 OR w.generations > h.generations THEN now()
                               ELSE h.last_request_at END
    FROM work w WHERE h.id = w.id AND (
        w.in_flight > 0 OR w.generations IS DISTINCT FROM h.generations OR h.full_at IS NOT NULL
    )
)
SELECT id, in_flight FROM work
"""
# Live claims that name a server: *drained* is none.
CLAIMS = "SELECT count(*) FROM server_slots WHERE server = $1 AND token IS NOT NULL AND until > now()"
FAILURES = """
SELECT pool, CASE WHEN machine_failed THEN machine END AS machine, failure, failed_at, failed_in FROM hosts
WHERE failed_at > now() - make_interval(secs => $1) ORDER BY failed_at DESC LIMIT 1000
"""
# What the hosts of the last weeks showed, by pool and GPU. A host with few tickets at once does far less than it could.
MEASURED = """
SELECT pool, gpu, CASE WHEN sum(full_seconds) >= $1 THEN nullif(sum(full_tokens) / sum(full_seconds), 0) END
           AS tokens_per_second,
       avg(extract(epoch FROM ready_at - created_at))::float8 AS startup
FROM hosts WHERE ready_at IS NOT NULL AND id > (SELECT uuidv7(make_interval(days => -$2::int))) GROUP BY pool, gpu
"""
# Whether it is over, and `excused` where that is nobody's fault who ran there: the provider took it, or it was ended.
FATE = """
SELECT state IN ('destroying', 'gone', 'failed') AS over,
       taken OR (state IN ('destroying', 'gone') AND failure IS NULL) AS excused
FROM hosts WHERE id = $1
"""
# One whose charge goes on stays, whatever its row says.
REMOVE = """
WITH old AS (
    SELECT id FROM hosts h
    WHERE ended_at < now() - make_interval(secs => $1)
      AND NOT EXISTS (SELECT FROM host_charges c WHERE c.host_id = h.id AND c.until_at IS NULL)
    ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM hosts h USING old WHERE h.id = old.id RETURNING h.id
)
SELECT count(*) FROM removed
"""

ASK = (
    "UPDATE hosts SET asked = $2 WHERE id = $1 AND ended_at IS NULL AND asked IS DISTINCT FROM 'destroy' RETURNING true"
)
LOCK = "UPDATE hosts SET locked = $2 WHERE id = $1 AND ended_at IS NULL RETURNING true"


class HostStore:
    """What anybody may read, and what admins ask for; every method raises DatabaseUnavailable without Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def live(self) -> Sequence[Row]:
        """Hosts that have not ended, oldest first; each with its `cost` in dollars and `now`."""
        return await self._fetch(LIVE)

    async def recent(self, limit: int, before: UUID) -> Sequence[Row]:
        """Hosts that live or have ended, newest first, as `live` has them."""
        return await self._fetch(RECENT, limit, before)

    async def find(self, id_: UUID) -> Row | None:
        found = await self._fetch(READ, id_)
        return found[0] if found else None

    async def events(self, id_: UUID) -> Sequence[Row]:
        return await self._fetch(EVENTS, id_)

    async def events_of(self, ids: Sequence[UUID]) -> Sequence[Row]:
        """Those of several hosts, each with its `host_id`."""
        return await self._fetch(EVENTS_OF, list(ids))

    async def by_labels(self, labels: Sequence[str]) -> dict[str, Row]:
        return {row["label"]: row for row in await self._fetch(BY_LABELS, list(labels))}

    async def spent(self) -> dict[str, Row]:
        """Dollars by pool: of the running `hour`, `day` and `month` (UTC) and in all; `rate` is dollars an hour now."""
        return {row["pool"]: row for row in await self._fetch(SPENT)}

    async def failures(self, seconds: float) -> Sequence[Row]:
        """Hosts that failed within the last `seconds`, newest first."""
        return await self._fetch(FAILURES, seconds)

    async def measured(self, least_full_seconds: float, days: int) -> Sequence[Row]:
        """`tokens_per_second` of a full host, and `startup` in seconds, by pool and GPU."""
        return await self._fetch(MEASURED, least_full_seconds, days)

    async def fate(self, id_: UUID) -> Row | None:
        """Whether the host is `over`, and whether its runs are `excused`; None where it is unknown."""
        rows = await self._fetch(FATE, id_)
        return rows[0] if rows else None

    async def claims(self, address: str) -> int:
        """How many live claims name the server."""
        (row,) = await self._fetch(CLAIMS, address)
        return int(row[0])

    async def remove(self, seconds: float, limit: int) -> int:
        """Removes hosts that ended so long ago, and their events; returns how many. The ledger stays."""
        (row,) = await self._fetch(REMOVE, seconds, limit)
        return int(row[0])

    async def ask(self, connection: Any, id_: UUID, what: str) -> bool:
        """`drain` or `destroy`, in the transaction of `connection`; False where it has ended or is to be destroyed."""
        return bool(await connection.fetchval(ASK, id_, what))

    async def lock(self, connection: Any, id_: UUID, locked: bool) -> bool:
        return bool(await connection.fetchval(LOCK, id_, locked))

    async def _fetch(self, statement: str, *values: object) -> Sequence[Any]:
        async with self._database.hot() as connection:
            rows: Sequence[Any] = await connection.fetch(statement, *values)
        return rows


class LeadersHosts:
    """What the leader writes; every method raises NotLeading once the token is stale."""

    def __init__(self, database: Database, token: int) -> None:
        self._database = database
        self._token = token

    async def reserve(
        self,
        *,
        pool: str,
        provider: str,
        label: str,
        offer: str,
        machine: str | None,
        gpu: str | None,
        hourly_price: float,
        storage_price: float,
        spot: bool,
        models: Sequence[str],
        revision: str | None,
        reason: str,
        since: datetime | None = None,
        limits: Sequence[Limit] = (),
        keep_seconds: float = 0.0,
    ) -> Row:
        """A host that is wanted, and its charge, which begins now; of one that exists already, `since` when.

        `limits` hold in the same transaction, whatever was planned: ending the hosts that cost now and this one may
        take `keep_seconds`, for which there has to be room. A host that exists already has none: it costs in any case.

        Raises:
            Overspent: there is no room.
        """
        async with fenced(self._database, self._token) as connection:
            await connection.execute(ALONE)
            given = [asdict(limit) for limit in limits]
            over = await connection.fetchrow(OVERSPENT, given, hourly_price, keep_seconds)
            if over is None:
                await connection.execute(END_STORAGE, provider, machine)
                row: Row = await connection.fetchrow(
                    RESERVE,
                    *(pool, provider, label, offer, machine, gpu, hourly_price, storage_price, spot, list(models)),
                    *(revision, reason, since),
                )
        if over is not None:
            raise Overspent(over)
        return row

    async def move(
        self,
        id_: UUID,
        state: str,
        reason: str = "",
        *,
        provider_id: str | None = None,
        server_id: UUID | None = None,
        address: str | None = None,
    ) -> None:
        async with fenced(self._database, self._token) as connection:
            await connection.execute(MOVE, id_, state, reason, provider_id, server_id, address)

    async def known_as(self, id_: UUID, provider_id: str) -> None:
        async with fenced(self._database, self._token) as connection:
            await connection.execute(KNOWN_AS, id_, provider_id)

    async def serve_at(self, id_: UUID, server_id: UUID, address: str) -> None:
        async with fenced(self._database, self._token) as connection:
            await connection.execute(SERVED_AT, id_, server_id, address)

    async def progress(self, id_: UUID, text: str, *, noted: bool) -> None:
        """Says how far it is; `noted` keeps it in the host's history."""
        async with fenced(self._database, self._token) as connection:
            await connection.execute(PROGRESS, id_, text, noted)

    async def fail(self, id_: UUID, failure: str, *, of_machine: bool = True) -> None:
        """What ends it, and whether its machine is to be avoided for that; the first failure stays."""
        async with fenced(self._database, self._token) as connection:
            await connection.execute(FAIL, id_, failure, of_machine)

    async def taken(self, id_: UUID) -> None:
        """Its provider took it away."""
        async with fenced(self._database, self._token) as connection:
            await connection.execute(TAKEN, id_)

    async def end(self, id_: UUID, reason: str, *, charged: bool = True, keeps_storage: bool = False) -> None:
        """It is known not to exist any more; where it never did, its open charge comes to nothing.

        One that `keeps_storage` is only stopped: it costs its storage until its machine is rented again.
        """
        async with fenced(self._database, self._token) as connection:
            await connection.execute(END, id_, reason)
            await connection.execute(END_CHARGES, id_, charged)
            if charged and keeps_storage:
                await connection.execute(CHARGE_STORAGE, id_)

    async def charge(self, id_: UUID, hourly_price: float) -> None:
        """From now on it costs this much, whatever was offered."""
        async with fenced(self._database, self._token) as connection:
            if await connection.fetchval(OPEN_PRICE, id_) != hourly_price:
                await connection.execute(END_CHARGES, id_, True)
                await connection.execute(CHARGE, id_, hourly_price)
                await connection.execute(REPRICE, id_, hourly_price)

    async def count_work(self) -> dict[UUID, int]:
        """Writes down what hosts have done; returns how many claims each has now."""
        async with fenced(self._database, self._token) as connection:
            rows = await connection.fetch(COUNT_WORK)
        return {row["id"]: row["in_flight"] for row in rows}
