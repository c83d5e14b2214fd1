"""What was used, from the counts that settling appends, and what rented hosts cost: by day, model, key or owner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from sqlalchemy import CTE, ColumnElement, Date, Double, Select, Subquery, Uuid, and_, case, func, select, text

from app.db.engine import Database
from app.db.queries import Queries
from app.db.tables import api_keys, owners, usage
from app.key_errors import OwnerNotFound, ScopeMissing
from app.services.callers import EVERYBODY, Caller, Scope

# What each host cost on each day (UTC), by the ledger; one that still costs does so up to now.
LEDGER = """
SELECT c.host_id, began::date AS day,
       sum(extract(epoch FROM least(c.until_at, began + interval '1 day') - greatest(c.from_at, began))
           / 3600 * c.hourly_price)::float8 AS dollars
FROM (
    SELECT host_id, hourly_price, from_at AT TIME ZONE 'UTC' AS from_at,
           coalesce(until_at, now()) AT TIME ZONE 'UTC' AS until_at
    FROM host_charges
    WHERE from_at < (CAST(:last AS date) + 1)::timestamp AT TIME ZONE 'UTC'
      AND (until_at IS NULL OR until_at > CAST(:first AS date)::timestamp AT TIME ZONE 'UTC')
) c, generate_series(date_trunc('day', c.from_at), c.until_at, interval '1 day') began
WHERE began::date BETWEEN CAST(:first AS date) AND CAST(:last AS date)
GROUP BY c.host_id, began
"""


SUMMED = ("requests", "failures", "prompt_tokens", "completion_tokens", "gpu_seconds", "cost")


class GroupBy(StrEnum):
    DAY = "day"
    MODEL = "model"
    KEY = "key"
    OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Used:
    """`rows` have the group's columns and the sums, `total` the sums alone."""

    rows: Sequence[Mapping[str, Any]]
    total: Mapping[str, Any]


class Usage:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def used(self, caller: Caller, group_by: GroupBy, first: date, last: date, owner: str | None = None) -> Used:
        """Counts of the days `first` to `last`, both included, in UTC; of the caller, or of the `owner` by name.

        Of everybody together, `host_cost` is the part of `cost` on rented hosts, and `overhead` what these cost
        besides: both are what the ledger says. Overhead belongs to a day, and to no model, key or owner.

        Raises:
            ScopeMissing: another's usage is for admins.
            OwnerNotFound: nobody has that name.
        """
        if owner is not None and Scope.ADMIN not in caller.scopes:
            raise ScopeMissing("Usage of other owners needs a key with the scope admin; leave out owner to see yours.")
        ledger = _ledger(first, last)
        used = _used(ledger, first, last)
        query = select(*_sums(used))
        async with self._database.reading() as queries:
            if owner == EVERYBODY:
                return await _with_overhead(queries, query, used, ledger, group_by)
            owner_id: int | None = caller.owner_id
            if owner is not None:
                owner_id = await queries.value(select(owners.c.id).where(owners.c.name == owner))
            if owner_id is None:
                raise OwnerNotFound(f"No owner is called {owner!r}. GET /keys/ names those there are.")
            rows = await queries.rows(_grouped(query.where(used.c.owner_id == owner_id), used, group_by))
        return Used(rows, _total(rows, SUMMED))


def _ledger(first: date, last: date) -> CTE:
    statement = text(LEDGER).bindparams(first=first, last=last)
    return statement.columns(host_id=Uuid(), day=Date(), dollars=Double()).cte("ledger")


def _used(ledger: CTE, first: date, last: date) -> Subquery:
    """Usage of these days. Tickets on a host never cost more than the host did: where dispatchers that did not see
    each other's requests counted the same second twice, each ticket's part is smaller."""
    span = usage.c.day.between(first, last)
    counted = (
        select(usage.c.host_id, usage.c.day, func.sum(usage.c.cost).label("dollars"))
        .where(span, usage.c.host_id.is_not(None))
        .group_by(usage.c.host_id, usage.c.day)
        .cte("counted")
    )
    charged = func.coalesce(ledger.c.dollars, 0)
    factor = case((counted.c.dollars > charged, charged / counted.c.dollars), else_=1)
    joined = usage.outerjoin(
        counted, and_(counted.c.host_id == usage.c.host_id, counted.c.day == usage.c.day)
    ).outerjoin(ledger, and_(ledger.c.host_id == usage.c.host_id, ledger.c.day == usage.c.day))
    others = [each for each in usage.c if each.name != "cost"]
    return select(*others, (usage.c.cost * factor).label("cost")).select_from(joined).where(span).subquery("used")


def _sums(used: Subquery) -> tuple[ColumnElement[Any], ...]:
    counts = (func.coalesce(func.sum(used.c[name]), 0).label(name) for name in SUMMED if name != "cost")
    # Stays null where no server's price was known.
    return (*counts, func.sum(used.c.cost).label("cost"))


def _total(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Of the groups, so that it is their sum whatever settles meanwhile."""
    total = {name: sum(row[name] for row in rows if row[name] is not None) for name in names}
    if all(row["cost"] is None for row in rows):
        total["cost"] = None
    return total


async def _with_overhead(queries: Queries, query: Select[Any], used: Subquery, ledger: CTE, group_by: GroupBy) -> Used:
    on_hosts = func.coalesce(func.sum(used.c.cost).filter(used.c.host_id.is_not(None)), 0).label("host_cost")
    rows = await queries.rows(_grouped(query.add_columns(on_hosts), used, group_by))
    charges = await queries.rows(select(ledger.c.day, func.sum(ledger.c.dollars).label("dollars")).group_by("day"))
    charged = {row["day"]: row["dollars"] for row in charges}
    total = _total(rows, (*SUMMED, "host_cost"))
    total["overhead"] = _rest(sum(charged.values()), total["host_cost"])
    if group_by is GroupBy.DAY:
        # A host may have had no work all day.
        idle = charged.keys() - {row["day"] for row in rows}
        nothing = dict.fromkeys((*SUMMED, "host_cost"), 0) | {"cost": None}
        rows = sorted([*rows, *(nothing | {"day": day} for day in idle)], key=lambda row: row["day"])
        for row in rows:
            row["overhead"] = _rest(charged.get(row["day"], 0.0), row["host_cost"])
    return Used(rows, total)


def _rest(charged: float, used: float) -> float:
    return max(charged - used, 0.0)


def _grouped(query: Select[Any], used: Subquery, group_by: GroupBy) -> Select[Any]:
    if group_by is GroupBy.KEY:
        named = [api_keys.c[name].label(f"key_{name}") for name in ("name", "hint", "person")]
        query = query.add_columns(used.c.key_id, *named).outerjoin_from(used, api_keys, api_keys.c.id == used.c.key_id)
        return query.group_by(used.c.key_id, api_keys.c.id).order_by(used.c.key_id)
    if group_by is GroupBy.OWNER:
        query = query.add_columns(owners.c.name.label("owner")).outerjoin_from(
            used, owners, owners.c.id == used.c.owner_id
        )
        return query.group_by(owners.c.name).order_by(owners.c.name)
    column = used.c[group_by.value]
    return query.add_columns(column).group_by(column).order_by(column)
