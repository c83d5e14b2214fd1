"""All SQL of the webhook outbox. Rows are written by the statements that settle; here they are claimed and closed.

A claim moves `due_at` to the end of its lease and counts a try. The count fences: whoever outlived its lease closes
no row that another dispatcher has claimed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.db.engine import Database

# Whether there are any: Postgres takes longer to start CLAIM than to run it.
OPEN = "SELECT EXISTS (SELECT FROM webhook_deliveries WHERE due_at IS NOT NULL)"
# Hosts are walked over the index, so that a host with a hundred thousand deliveries hides no other one.
CLAIM = """
WITH RECURSIVE hosts (host) AS (
    SELECT (SELECT host FROM webhook_deliveries WHERE due_at IS NOT NULL ORDER BY host LIMIT 1)
    UNION ALL
    SELECT (
        SELECT d.host FROM webhook_deliveries d
        WHERE d.due_at IS NOT NULL AND d.host > h.host ORDER BY d.host LIMIT 1
    ) FROM hosts h WHERE h.host IS NOT NULL
), turns AS (
    SELECT h.host, greatest($3 - coalesce(b.running, 0), 0) AS free
    FROM hosts h LEFT JOIN unnest($1::text[], $2::int[]) AS b(host, running) USING (host)
    WHERE h.host IS NOT NULL
), due AS MATERIALIZED (
    SELECT p.id, p.due_at, row_number() OVER (PARTITION BY t.host ORDER BY p.due_at) AS place
    FROM turns t CROSS JOIN LATERAL (
        SELECT d.id, d.due_at FROM webhook_deliveries d
        WHERE d.host = t.host AND d.due_at <= now()
        ORDER BY d.due_at LIMIT t.free FOR UPDATE SKIP LOCKED
    ) p
), claimed AS (
    UPDATE webhook_deliveries d SET due_at = now() + make_interval(secs => $5), tries = d.tries + 1
    FROM (SELECT id FROM due ORDER BY place, due_at LIMIT $4) chosen
    WHERE d.id = chosen.id
    RETURNING d.id, d.owner_id, d.result_id, d.batch_id, d.data, d.event, d.url, d.host, d.created_at, d.tries,
              extract(epoch FROM d.give_up_at - now())::float8 AS seconds_left
)
SELECT c.*, o.webhook_secret,
       CASE WHEN o.old_webhook_secret_until > now() THEN o.old_webhook_secret END AS old_webhook_secret
FROM claimed c LEFT JOIN owners o ON o.id = c.owner_id
"""

# A delivery that arrived has arrived, whoever made it. One that a stopping dispatcher gave up halfway is due again.
CLOSE = """
UPDATE webhook_deliveries d SET
    due_at = CASE WHEN g.delivered OR g.pause IS NULL THEN NULL ELSE now() + make_interval(secs => g.pause) END,
    delivered_at = CASE WHEN g.delivered THEN now() END,
    tries = d.tries - CASE WHEN g.error IS NULL AND NOT g.delivered THEN 1 ELSE 0 END,
    last_error = CASE WHEN g.delivered THEN NULL ELSE coalesce(g.error, d.last_error) END
FROM unnest($1::uuid[], $2::int[], $3::bool[], $4::float8[], $5::text[]) AS g(id, tries, delivered, pause, error)
WHERE d.id = g.id AND d.delivered_at IS NULL AND (d.tries = g.tries OR g.delivered)
"""

OF_RESULT = """
SELECT id, event, url, created_at, due_at, give_up_at, tries, delivered_at, last_error FROM webhook_deliveries
WHERE result_id = $1 AND owner_id = $2 ORDER BY id
"""

# Of an owner: those in a state are looked for among the newest.
OF_OWNER = """
SELECT id, event, url, created_at, due_at, give_up_at, tries, delivered_at, last_error, result_id, batch_id FROM (
    SELECT * FROM webhook_deliveries WHERE owner_id = $1 AND ($2::uuid IS NULL OR id < $2)
    ORDER BY owner_id DESC, id DESC LIMIT $5
) newest
WHERE CASE $3::text WHEN 'pending' THEN due_at IS NOT NULL
                    WHEN 'delivered' THEN due_at IS NULL AND delivered_at IS NOT NULL
                    WHEN 'given_up' THEN due_at IS NULL AND delivered_at IS NULL
                    ELSE true END
ORDER BY id DESC LIMIT $4
"""

SEND_AGAIN = """
UPDATE webhook_deliveries SET due_at = now(), give_up_at = now() + interval '72 hours', tries = 0, delivered_at = NULL
WHERE id = $1 AND ($2::uuid IS NULL OR result_id = $2) AND owner_id = $3 AND due_at IS NULL
"""
IS_OF = "SELECT EXISTS (SELECT FROM webhook_deliveries WHERE id = $1 AND owner_id = $2)"

REMOVE = """
DELETE FROM webhook_deliveries WHERE id IN (
    SELECT id FROM webhook_deliveries WHERE id < $1 AND due_at IS NULL ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

SIGN_WITH = "UPDATE owners SET webhook_secret = coalesce(webhook_secret, $2) WHERE id = $1 RETURNING webhook_secret"
ROTATE = """
UPDATE owners SET webhook_secret = $2, old_webhook_secret = webhook_secret,
                  old_webhook_secret_until = now() + make_interval(secs => $3)
WHERE id = $1 RETURNING webhook_secret, old_webhook_secret_until
"""

OWNER = "SELECT id FROM owners WHERE name = $1"


@dataclass(frozen=True, slots=True)
class Close:
    """How a try ended: delivered, to be tried again after `pause` seconds, given up (no pause), or, without an
    error, not made at all."""

    id: UUID
    tries: int
    delivered: bool = False
    pause: float | None = None
    error: str | None = None


class DeliveryStore:
    """The outbox's statements; every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self, running: Mapping[str, int], *, per_host: int, limit: int, lease_seconds: float
    ) -> list[Mapping[str, Any]]:
        """Claims up to `limit` due deliveries, so that no host gets over `per_host` with those it has `running`."""
        async with self._database.hot() as connection:
            if not await connection.fetchval(OPEN):
                return []
            rows: list[Mapping[str, Any]] = await connection.fetch(
                CLAIM, list(running), list(running.values()), per_host, limit, lease_seconds
            )
        return rows

    async def close(self, ends: Sequence[Close]) -> None:
        """Writes how tries ended."""
        columns = zip(*((e.id, e.tries, e.delivered, e.pause, e.error) for e in ends), strict=True)
        async with self._database.hot() as connection:
            await connection.execute(CLOSE, *map(list, columns))

    async def of_result(self, result_id: UUID, owner_id: int) -> list[Mapping[str, Any]]:
        async with self._database.hot() as connection:
            rows: list[Mapping[str, Any]] = await connection.fetch(OF_RESULT, result_id, owner_id)
        return rows

    async def of_owner(
        self, owner_id: int, before: UUID | None, state: str | None, limit: int, most_looked_at: int
    ) -> list[Mapping[str, Any]]:
        """Newest first."""
        async with self._database.hot() as connection:
            rows: list[Mapping[str, Any]] = await connection.fetch(
                OF_OWNER, owner_id, before, state, limit, most_looked_at
            )
        return rows

    async def send_again(self, id_: UUID, result_id: UUID | None, owner_id: int) -> bool:
        """Makes an ended delivery due, one that is under way stays as it is; whether the owner has such a delivery."""
        async with self._database.hot() as connection:
            await connection.execute(SEND_AGAIN, id_, result_id, owner_id)
            is_there: bool = await connection.fetchval(IS_OF, id_, owner_id)
        return is_there

    async def remove(self, older_than: UUID, limit: int) -> int:
        """Removes ended deliveries made before the id `older_than`; returns how many."""
        async with self._database.hot() as connection:
            done: str = await connection.execute(REMOVE, older_than, limit)
        return int(done.split()[-1])

    async def owner(self, name: str) -> int | None:
        async with self._database.hot() as connection:
            found: int | None = await connection.fetchval(OWNER, name)
        return found

    async def secret(self, owner_id: int, otherwise: str) -> str | None:
        """The owner's secret, `otherwise` from now on where there is none yet; None without such an owner."""
        async with self._database.hot() as connection:
            found: str | None = await connection.fetchval(SIGN_WITH, owner_id, otherwise)
        return found

    async def rotate(self, owner_id: int, secret: str, overlap_seconds: float) -> tuple[str, datetime] | None:
        """Sets the owner's secret; the one before signs beside it until the time returned."""
        async with self._database.hot() as connection:
            row = await connection.fetchrow(ROTATE, owner_id, secret, overlap_seconds)
        return None if row is None else (row[0], row[1])
