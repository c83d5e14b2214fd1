"""What waits and runs in the whole service, counted from the tables."""

from dataclasses import dataclass

from app.db.engine import Database

# By model, as results_claim has it: an index of the pending rows alone, which no other one is thought as good as.
PENDING = """
WITH RECURSIVE models AS (
    (SELECT model FROM results WHERE status = 'pending' ORDER BY model, wish, owner_id, rank, id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT r.model FROM results r WHERE r.status = 'pending' AND r.model > m.model
        ORDER BY r.model, r.wish, r.owner_id, r.rank, r.id LIMIT 1
    ) FROM models m WHERE m.model IS NOT NULL
)
SELECT m.model, p.*
FROM models m CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE attempt_token IS NOT NULL AND available_at > now()) AS running,
           count(*) FILTER (WHERE attempt_token IS NULL AND available_at > now()) AS backing_off,
           count(*) AS pending,
           coalesce(extract(epoch FROM now() - min(created_at) FILTER (
               WHERE attempt_token IS NULL OR available_at <= now()
           )), 0)::float8 AS oldest,
           coalesce(extract(epoch FROM now() - min(available_at) FILTER (
               WHERE available_at <= now() AND wish = ''
           )), 0)::float8 AS unclaimed
    FROM results r WHERE r.status = 'pending' AND r.model = m.model
) p
WHERE m.model IS NOT NULL
"""
DELIVERIES = "SELECT count(*) FROM webhook_deliveries WHERE due_at IS NOT NULL"


@dataclass(frozen=True, slots=True)
class ModelBacklog:
    """Tickets by what they do; `oldest` is the age in seconds of the oldest that does not run, 0 where all run.

    `unclaimed` is for how many seconds a dispatcher could have claimed the one that has been due longest, of those that
    any server may run; 0 where none is due.
    """

    model: str
    running: int
    backing_off: int
    queued: int
    oldest: float
    unclaimed: float


@dataclass(frozen=True, slots=True)
class Backlog:
    models: list[ModelBacklog]
    deliveries: int


async def read_backlog(database: Database) -> Backlog:
    """Two statements whose cost grows with what is pending, not with history.

    Raises:
        DatabaseUnavailable: Postgres is out of reach.
    """
    async with database.hot() as connection:
        rows = await connection.fetch(PENDING)
        deliveries = await connection.fetchval(DELIVERIES)
    return Backlog(
        [
            ModelBacklog(
                row["model"],
                row["running"],
                row["backing_off"],
                row["pending"] - row["running"] - row["backing_off"],
                row["oldest"],
                row["unclaimed"],
            )
            for row in rows
        ],
        deliveries,
    )
