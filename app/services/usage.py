"""What was used, from the counts that settling appends: by day, model, key or owner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from app.db.engine import Database
from app.db.tables import api_keys, owners, usage
from app.errors import OwnerNotFound, ScopeMissing
from app.services.callers import EVERYBODY, Caller, Scope

SUMS: tuple[ColumnElement[Any], ...] = (
    *(
        func.coalesce(func.sum(usage.c[name]), 0).label(name)
        for name in ("requests", "failures", "prompt_tokens", "completion_tokens", "gpu_seconds")
    ),
    # Stays null where no server's price was known.
    func.sum(usage.c.cost).label("cost"),
)


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

        Raises:
            ScopeMissing: another's usage is for admins.
            OwnerNotFound: nobody has that name.
        """
        if owner is not None and Scope.ADMIN not in caller.scopes:
            raise ScopeMissing("Usage of other owners needs a key with the scope admin; leave out owner to see yours.")
        async with self._database.reading() as queries:
            query = select(*SUMS).where(usage.c.day.between(first, last))
            if owner != EVERYBODY:
                owner_id: int | None = caller.owner_id
                if owner is not None:
                    owner_id = await queries.value(select(owners.c.id).where(owners.c.name == owner))
                if owner_id is None:
                    raise OwnerNotFound(f"No owner is called {owner!r}. GET /keys/ names those there are.")
                query = query.where(usage.c.owner_id == owner_id)
            rows = await queries.rows(_grouped(query, group_by))
            (total,) = await queries.rows(query)
        return Used(rows, total)


def _grouped(query: Select[Any], group_by: GroupBy) -> Select[Any]:
    if group_by is GroupBy.KEY:
        named = [api_keys.c[name].label(f"key_{name}") for name in ("name", "hint", "person")]
        query = query.add_columns(usage.c.key_id, *named).outerjoin_from(
            usage, api_keys, api_keys.c.id == usage.c.key_id
        )
        return query.group_by(usage.c.key_id, api_keys.c.id).order_by(usage.c.key_id)
    if group_by is GroupBy.OWNER:
        query = query.add_columns(owners.c.name.label("owner")).outerjoin_from(
            usage, owners, owners.c.id == usage.c.owner_id
        )
        return query.group_by(owners.c.name).order_by(owners.c.name)
    column = usage.c[group_by.value]
    return query.add_columns(column).group_by(column).order_by(column)
