"""SQL of the ledger, `host_charges`: what is spent, and whether there is room for more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.queue import locks

# Dollars of a charge from a moment on, up to now.
DOLLARS_SINCE = """greatest(extract(epoch FROM coalesce(c.until_at, now()) - greatest(c.from_at, {since})), 0)::float8
    / 3600 * c.hourly_price"""

END_CHARGES = """
UPDATE host_charges SET until_at = CASE WHEN $2 THEN now() ELSE from_at END WHERE host_id = $1 AND until_at IS NULL
"""
CHARGE = """
INSERT INTO host_charges (host_id, from_at, pool, hourly_price) SELECT id, now(), pool, $2 FROM hosts WHERE id = $1
"""
# A host that is only stopped costs its storage, until its machine is rented again: from then on it is in the price.
CHARGE_STORAGE = """
INSERT INTO host_charges (host_id, from_at, pool, hourly_price)
SELECT id, now(), pool, storage_price FROM hosts WHERE id = $1 AND storage_price > 0
"""
END_STORAGE = """
UPDATE host_charges c SET until_at = now() FROM hosts h
WHERE c.until_at IS NULL AND h.id = c.host_id AND h.ended_at IS NOT NULL AND h.provider = $1 AND h.machine = $2
"""
OPEN_PRICE = "SELECT hourly_price FROM host_charges WHERE host_id = $1 AND until_at IS NULL"
_WINDOWS = {
    "hour": "date_trunc('hour', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'",
    "day": "date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'",
    "month": "date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'",
    "total": "'-infinity'::timestamptz",
}
SPANS = tuple(_WINDOWS)
SPENT = f"""
SELECT pool, {
    ", ".join(f"sum({DOLLARS_SINCE.format(since=since)})::float8 AS {name}" for name, since in _WINDOWS.items())
}, coalesce(sum(hourly_price) FILTER (WHERE until_at IS NULL), 0)::float8 AS rate
FROM host_charges c GROUP BY pool
"""  # noqa: S608
# The first budget in which there is no room for a host at $2 dollars an hour, if all hosts that cost now go on for as
# long as ending them may take, $3 seconds, or until the hour, day or month is over.
OVERSPENT = f"""
SELECT b.pool, b.span, b.most, s.spent
FROM jsonb_to_recordset($1::jsonb) AS b(pool text, span text, most float8)
CROSS JOIN LATERAL (
    SELECT CASE b.span {" ".join(f"WHEN '{name}' THEN {since}" for name, since in _WINDOWS.items())} END AS since
) w
CROSS JOIN LATERAL (
    SELECT CASE WHEN b.span = 'total' THEN $3::float8 ELSE
        least($3::float8, extract(epoch FROM (w.since AT TIME ZONE 'UTC' + ('1 ' || b.span)::interval)
                                             AT TIME ZONE 'UTC' - now())::float8) END AS seconds
) l
CROSS JOIN LATERAL (
    SELECT coalesce(sum({DOLLARS_SINCE.format(since="w.since")}), 0)::float8 AS spent,
           coalesce(sum(c.hourly_price) FILTER (WHERE c.until_at IS NULL), 0)::float8 AS rate
    FROM host_charges c WHERE b.pool IN ('', c.pool)
) s
WHERE s.spent + (s.rate + $2::float8) * l.seconds / 3600 > b.most
LIMIT 1
"""  # noqa: S608
# One at a time, so that no other charge begins between the look at a budget and the host that is taken from it.
ALONE = f"SELECT pg_advisory_xact_lock({locks.BUDGET})"


class Overspent(Exception):
    """There is no room for the host in a budget, so nothing was written."""

    def __init__(self, budget: Mapping[str, Any]) -> None:
        whose = f"of pool {budget['pool']}" if budget["pool"] else "over all pools"
        super().__init__(
            f"the budget {whose} is ${budget['most']:.2f} ({budget['span']}), of which ${budget['spent']:.2f} is spent"
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """So many dollars at `most` in a span (`hour`, `day`, `month`, `total`); `pool` is empty for all pools together."""

    pool: str
    span: str
    most: float
