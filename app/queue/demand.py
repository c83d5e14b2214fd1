"""What waits for hosts, model by model; the cost of looking is bounded, whatever is pending or was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.db.engine import Database

# With as many waiting, one more changes no plan.
MOST_COUNTED = 100_000
SAMPLED = 200
HISTORY_DAYS = 7
RATE_SECONDS = 600
LATELY_SECONDS = 15
# Quiet spells of at least so many seconds are looked for among so many of the last tickets.
QUIET_SECONDS = 60
# Deadlines that differ by less than a twentieth of the time until then count as one, the earliest.
SPANS_PER_E = 20
QUIET_AMONG, QUIET_SPELLS, QUIET_DAYS = 2000, 50, 7

# A wish for one server by name is no wish for another host.
WAITING = f"""
SELECT m.model, w.*, s.asked_tokens
FROM unnest($1::text[]) AS m(model) CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE attempt_token IS NULL OR available_at <= now()) AS waiting,
           count(*) FILTER (WHERE attempt_token IS NOT NULL AND available_at > now()) AS running,
           coalesce(extract(epoch FROM now() - min(created_at) FILTER (
               WHERE attempt_token IS NULL OR available_at <= now()
           )), 0)::float8 AS oldest
    FROM (
        SELECT attempt_token, available_at, created_at FROM results r
        WHERE r.status = 'pending' AND r.model = m.model AND (r.wish = '' OR r.wish LIKE 'kinds:%triton%')
        LIMIT {MOST_COUNTED}
    ) counted
) w CROSS JOIN LATERAL (
    SELECT avg((parameters ->> 'max_tokens')::float8) AS asked_tokens FROM (
        SELECT parameters FROM results r WHERE r.status = 'pending' AND r.model = m.model LIMIT {SAMPLED}
    ) sampled WHERE jsonb_typeof(parameters -> 'max_tokens') = 'number'
) s
"""  # noqa: S608
HISTORY = f"""
SELECT model, sum(completion_tokens)::float8 / sum(requests - failures) AS tokens
FROM usage WHERE day > (now() AT TIME ZONE 'UTC')::date - {HISTORY_DAYS} AND model = ANY ($1::text[])
GROUP BY model HAVING sum(requests - failures) > 0
"""  # noqa: S608
# By the key, which is in the order of time; the first id is made once, as an index takes no function that is volatile.
ARRIVED = f"""
SELECT model, count(*) AS tickets,
       count(*) FILTER (WHERE created_at > now() - make_interval(secs => {LATELY_SECONDS})) AS last,
       count(*) FILTER (
           WHERE created_at > now() - make_interval(secs => {2 * LATELY_SECONDS})
               AND created_at <= now() - make_interval(secs => {LATELY_SECONDS})
       ) AS before
FROM (
    SELECT model, created_at FROM results WHERE id > (SELECT uuidv7(make_interval(secs => -{RATE_SECONDS})))
    ORDER BY id DESC LIMIT {MOST_COUNTED}
) latest WHERE model = ANY ($1::text[]) GROUP BY model
"""  # noqa: S608
# Between tickets of a pool, of whichever of its models.
QUIET = f"""
SELECT pool, seconds FROM (
    SELECT p.pool, created_at, extract(epoch FROM created_at - lag(created_at) OVER (
        PARTITION BY p.pool ORDER BY created_at
    ))::float8 AS seconds
    FROM (
        SELECT model, created_at FROM results WHERE id > (SELECT uuidv7(make_interval(days => -{QUIET_DAYS})))
        ORDER BY id DESC LIMIT {QUIET_AMONG}
    ) latest JOIN unnest($1::text[], $2::text[]) AS p(model, pool) USING (model)
) spells WHERE seconds >= {QUIET_SECONDS} ORDER BY created_at DESC
"""  # noqa: S608
# In the order of the claim: an owner's by their rank, each wish apart, and owners in turn by their weights. So when the
# last of those runs that expire at about the same time, each owner has had as many turns as that one's owner. It costs
# nothing where no ticket expires, and the order is that of the index results_claim: nothing is sorted.
DEADLINES = f"""
WITH expiring AS MATERIALIZED (
    SELECT DISTINCT model FROM (
        SELECT model, attempt_token FROM results
        WHERE status = 'pending' AND expires_at IS NOT NULL ORDER BY expires_at LIMIT 10000
    ) first WHERE attempt_token IS NULL AND model = ANY ($1::text[])
)
SELECT e.model, d.seconds, d.tickets FROM expiring e CROSS JOIN LATERAL (
    WITH queued AS MATERIALIZED (
        SELECT wish, owner_id, count(*) AS tickets, array_agg(expires_at ORDER BY rank, id) AS times
        FROM (
            SELECT r.wish, r.owner_id, r.rank, r.id, r.expires_at FROM results r
            WHERE r.status = 'pending' AND r.model = e.model AND (r.wish = '' OR r.wish LIKE 'kinds:%triton%')
                AND (r.attempt_token IS NULL OR r.available_at <= now())
            ORDER BY r.wish, r.owner_id, r.rank, r.id LIMIT {MOST_COUNTED}
        ) first GROUP BY wish, owner_id
    ), queues AS MATERIALIZED (
        SELECT q.times, q.tickets, coalesce(o.weight, 1)::float8 AS weight
        FROM queued q LEFT JOIN owners o ON o.id = q.owner_id
    ), spans AS MATERIALIZED (
        SELECT greatest(min(t.seconds), 0) AS seconds, max(t.place / q.weight) AS turn
        FROM queues q CROSS JOIN LATERAL (
            SELECT date_part('epoch', u.time - now()) AS seconds, place
            FROM unnest(q.times) WITH ORDINALITY AS u(time, place) WHERE u.time IS NOT NULL
        ) t GROUP BY round(ln(greatest(t.seconds, 1)) * {SPANS_PER_E})
    )
    SELECT s.seconds, (
        SELECT sum(least(q.tickets, floor(s.turn * q.weight + 1e-6)))::bigint FROM queues q
    ) AS tickets FROM spans s
) d ORDER BY d.seconds
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """`oldest`: seconds. `tokens`: of one answer, on average; of a model without history, half of what is asked for.

    `arrived`: tickets of the last ten minutes; `last` and `before`: of the last 15 seconds and those before.
    `deadlines`: seconds until tickets expire, and how many run until the last of them does, those before it included.
    """

    model: str
    waiting: int
    running: int
    oldest: float
    tokens: float
    arrived: int = 0
    last: int = 0
    before: int = 0
    deadlines: tuple[tuple[float, int], ...] = ()


class DemandStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, models: Sequence[str]) -> list[ModelDemand]:
        """What waits for each of the models; raises DatabaseUnavailable."""
        async with self._database.hot() as connection:
            waiting, history, arrived, deadlines = [
                await connection.fetch(statement, list(models)) for statement in (WAITING, HISTORY, ARRIVED, DEADLINES)
            ]
        usual = {row["model"]: row["tokens"] for row in history}
        arrivals = {row["model"]: (row["tickets"], row["last"], row["before"]) for row in arrived}
        return [
            ModelDemand(
                row["model"],
                row["waiting"],
                row["running"],
                row["oldest"],
                _tokens(usual.get(row["model"]), row["asked_tokens"]),
                *arrivals.get(row["model"], (0, 0, 0)),
                tuple((each["seconds"], each["tickets"]) for each in deadlines if each["model"] == row["model"]),
            )
            for row in waiting
        ]

    async def quiet(self, pools: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
        """Seconds of each pool's last quiet spells, the latest last; `pools` is by model."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(QUIET, list(pools), list(pools.values()))
        spells: dict[str, list[float]] = {}
        for row in rows:
            spells.setdefault(row["pool"], []).append(row["seconds"])
        return {pool: tuple(reversed(each[:QUIET_SPELLS])) for pool, each in spells.items()}


def _tokens(usual: float | None, asked: float | None) -> float:
    # Tickets of today may ask for less than those before.
    if usual is None:
        return (asked or 0.0) / 2
    return usual if asked is None else min(usual, asked)
