"""All SQL of `budget_alerts`: each level of a budget is told once in a period, whoever leads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from app.db.engine import Database
from app.queue.leader import fenced

EVENT = "budget.reached"
# Whose secret signs it: the owner of what is sent without a key.
OWNER = 0
KEPT_DAYS = 60

TELL = f"""
WITH told AS (
    INSERT INTO budget_alerts (pool, span, period, level, most, spent)
    SELECT pool, span, period, level, most, spent
    FROM jsonb_to_recordset($1::jsonb)
         AS g(pool text, span text, period text, level int, most float8, spent float8)
    ON CONFLICT DO NOTHING
    RETURNING *
), announced AS (
    INSERT INTO webhook_deliveries (owner_id, event, url, data)
    SELECT {OWNER}, '{EVENT}', $2, jsonb_build_object('pool', nullif(pool, ''), 'span', span, 'period', period,
                                                      'level', level, 'limit', most, 'spent', spent)
    FROM told WHERE $2::text IS NOT NULL
), forgotten AS (
    DELETE FROM budget_alerts WHERE span <> 'total' AND at < now() - interval '{KEPT_DAYS} days'
)
SELECT pool, span, period, level, most, spent FROM told ORDER BY pool, span, level
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Alert:
    """So many percent, the `level`, of the `most` dollars of a span (`hour`, `day`, `month`, `total`) are spent.

    `pool` is empty for the budget over all pools; `period` says which hour, day or month, in UTC.
    """

    pool: str
    span: str
    period: str
    level: int
    most: float
    spent: float


class BudgetAlerts:
    """What the leader writes; raises NotLeading once the token is stale."""

    def __init__(self, database: Database, token: int) -> None:
        self._database = database
        self._token = token

    async def tell(self, alerts: Sequence[Alert], url: str | None) -> list[Alert]:
        """Returns those that were not told before, each with a delivery to `url` in the same transaction."""
        async with fenced(self._database, self._token) as connection:
            rows = await connection.fetch(TELL, [asdict(alert) for alert in alerts], url)
        return [Alert(**dict(row)) for row in rows]
