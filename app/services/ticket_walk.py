"""Tickets that have one property or several: found along the index that has them all, else along the index of each.

Which index that is is not left to the planner: it takes tickets of all times for alike, and would walk all newer ones
where the newest have other properties. Several indexes are walked in turn, each with a longer step than before, newest
tickets first. Whichever comes to its end, or to enough tickets, has found them; where time is up before that, it is the
one that came furthest back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, literal, select, tuple_

from app.db.engine import Database
from app.db.queries import Queries
from app.db.tables import results
from app.queue.ticket import Status
from app.services.ticket_words import MAX_SECONDS

FIRST_ROWS, MOST_ROWS = 500, 8_000
# After a round as quick as this the next steps are longer, and after one as slow as this they are shorter.
QUICK_SECONDS, SLOW_SECONDS = 0.015, 0.05
PROPERTIES = ("client_reference", "context_id", "model", "status")


@dataclass(frozen=True, slots=True)
class Way:
    """An index of these columns and then the id; with `failed`, of tickets that failed."""

    columns: tuple[str, ...]
    failed: bool = False

    @property
    def finds(self) -> frozenset[str]:
        """The properties it has."""
        return frozenset(self.columns) - {"owner_id"} | ({"status"} if self.failed else set())


def ways(wanted: Mapping[str, Any]) -> list[Way]:
    """The indexes that find some of the properties that are wanted."""
    failed = wanted.get("status") == Status.FAILED
    of = {
        "client_reference": Way(("owner_id", "client_reference")),
        "context_id": Way(("context_id",), failed),
        "model": Way(("model", "owner_id"), failed) if failed else Way(("owner_id", "model")),
        "status": Way(("owner_id", "status")),
    }
    return [of[name] for name in PROPERTIES if name in wanted]


@dataclass(slots=True)
class Walk:
    """Along one index; `below` is the last ticket that was looked at, and None at the end of the index."""

    way: Way
    below: UUID | None
    ids: list[UUID] = field(default_factory=list)

    async def step(self, queries: Queries, wanted: Mapping[str, Any], lowest: UUID, rows: int) -> None:
        assert self.below is not None
        row = await queries.row(step_query(self.way, wanted, (lowest, self.below), rows))
        assert row is not None
        self.ids += row["ids"]
        self.below = row["last"] if row["looked_at"] == rows else None


async def walked(
    database: Database, wanted: Mapping[str, Any], lowest: UUID, below: UUID, limit: int
) -> tuple[list[UUID], UUID | None]:
    """The newest with ids from `lowest` to `below`, `limit` at most; and the id below which others are to be found.

    `wanted` are the values of columns, `owner_id` among them.
    """
    began, rows = time.monotonic(), FIRST_ROWS
    known = ways(wanted)
    if whole := [way for way in known if way.finds == wanted.keys() - {"owner_id"}]:
        # Each of its tickets is one of those: no more are looked at than are wanted.
        known, rows = whole, limit
    walks = [Walk(way, below) for way in known]
    async with database.reading() as queries:
        while True:
            started = time.monotonic()
            for walk in walks:
                await walk.step(queries, wanted, lowest, rows)
                if len(walk.ids) >= limit:
                    return walk.ids[:limit], walk.ids[limit - 1]
                if walk.below is None:
                    return walk.ids, None
            now = time.monotonic()
            if now - began > MAX_SECONDS:
                furthest = min(walks, key=lambda walk: walk.below or lowest)
                return furthest.ids, furthest.below
            if now - started < QUICK_SECONDS * len(walks):
                rows = min(rows * 4, MOST_ROWS)
            elif now - started > SLOW_SECONDS * len(walks):
                rows = max(rows // 2, FIRST_ROWS)


def step_query(way: Way, wanted: Mapping[str, Any], between: tuple[UUID, UUID], rows: int) -> Select[Any]:
    """The next `rows` along an index: the `ids` of those that are wanted, how many were `looked_at`, and the `last`."""
    # Compared and ordered as rows, so that no other index is thought to be as good; the bounds have the same values.
    ordered = [results.c[name] for name in (*way.columns, "id")]
    first, last = (
        tuple_(*(literal(value, column.type) for column, value in zip(ordered, values, strict=True)))
        for values in ((*(wanted[name] for name in way.columns), id_) for id_ in between)
    )
    where = [tuple_(*ordered) >= first, tuple_(*ordered) < last]
    if way.failed:
        where.append(results.c.status == Status.FAILED)
    if "client_reference" in way.columns:
        # As the index says it.
        where.append(results.c.client_reference.is_not(None))
    looked_at = (
        select(results.c.id, *(results.c[name] for name in wanted))
        .where(*where)
        .order_by(*(column.desc() for column in ordered))
        .limit(rows)
        .cte("looked_at")
    )
    found = select(looked_at.c.id).where(*(looked_at.c[name] == value for name, value in wanted.items()))
    return select(
        func.array(found.order_by(looked_at.c.id.desc()).scalar_subquery()).label("ids"),
        select(looked_at.c.id).order_by(looked_at.c.id).limit(1).scalar_subquery().label("last"),
        select(func.count()).select_from(looked_at).scalar_subquery().label("looked_at"),
    )
