"""Picks: which answer of a comparison somebody found the best, and how often each model was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select

from app.db.engine import Database
from app.db.ids import uuid7
from app.db.tables import comparison_picks
from app.errors import ComparisonPending, invalid
from app.queue.ticket import Status
from app.services.callers import Caller
from app.services.comparisons import Comparisons
from app.services.pages import Page, Window, fetch_page

# Of the picks, so many of the newest are summed.
MOST_SUMMED = 10_000

SET = """
INSERT INTO comparison_picks
    (id, owner_id, comparison_id, key_id, context_id, result_id, models, servers, model, server)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (comparison_id, key_id) DO UPDATE
SET id = excluded.id, result_id = excluded.result_id, servers = excluded.servers, model = excluded.model,
    server = excluded.server, created_at = now()
RETURNING *
"""
GET = """
SELECT * FROM comparison_picks
WHERE comparison_id = $1 AND owner_id = $2 AND key_id IS NOT DISTINCT FROM $3::uuid
"""
REMOVE = GET.replace("SELECT *", "DELETE", 1)
# A model that was compared with itself alone won against nobody.
_WINS = """
SELECT each AS name, count(*) AS compared, count(*) FILTER (WHERE each = {name}) AS picked,
       count(*) FILTER (WHERE {name} IS NULL) AS undecided
FROM (SELECT {names}, {name} FROM comparison_picks WHERE owner_id = $1 ORDER BY id DESC LIMIT $2) newest,
     LATERAL (SELECT DISTINCT unnest({names}) AS each) told
WHERE each <> '' AND EXISTS (SELECT FROM unnest({names}) other WHERE other <> each AND other <> '')
GROUP BY each ORDER BY picked DESC, compared, name
"""
WINS_OF_MODELS = _WINS.format(names="models", name="model")
WINS_OF_SERVERS = _WINS.format(names="servers", name="server")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wins:
    """How often a model, or a server, was compared with others, was picked, and none was."""

    name: str
    compared: int
    picked: int
    undecided: int


class Picks:
    def __init__(self, database: Database, comparisons: Comparisons) -> None:
        self._database = database
        self._comparisons = comparisons

    async def set(self, caller: Caller, comparison_id: UUID, result_id: UUID | None) -> Row:
        """The caller's pick, in place of an earlier one; `result_id` None says that no answer is the best.

        Raises:
            ComparisonNotFound: no such comparison.
            ComparisonPending: not all of its answers are there.
            InvalidRequest: the result is not one of its completed ones.
        """
        comparison = await self._comparisons.get(caller, comparison_id)
        if comparison.status is Status.PENDING:
            raise ComparisonPending(
                "Not all answers of this comparison are there: wait for its end, or cancel it, then pick."
            )
        row, results = comparison.row, comparison.results
        server_of = {id_: result["server"] or "" for id_, result in results.items()}
        model = server = None
        if result_id is not None:
            if results.get(result_id, {}).get("status") != Status.COMPLETED:
                ids = ", ".join(str(id_) for id_, result in results.items() if result["status"] == Status.COMPLETED)
                raise invalid("result_id", f"names no completed result of this comparison; those are: {ids or 'none'}")
            model = row["models"][row["result_ids"].index(result_id)]
            server = server_of[result_id]
        async with self._database.hot() as connection:
            pick: Row = await connection.fetchrow(
                SET,
                uuid7(),
                caller.owner_id,
                comparison_id,
                caller.key_id,
                row["context_id"],
                result_id,
                row["models"],
                [server_of.get(id_, "") for id_ in row["result_ids"]],
                model,
                server,
            )
        return pick

    async def get(self, caller: Caller, comparison_id: UUID) -> Row | None:
        """The caller's own pick."""
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(GET, comparison_id, caller.owner_id, caller.key_id)
        return row

    async def remove(self, caller: Caller, comparison_id: UUID) -> None:
        """Takes the caller's pick back, if there is one; raises ComparisonNotFound."""
        await self._comparisons.row(caller, comparison_id)
        async with self._database.hot() as connection:
            await connection.execute(REMOVE, comparison_id, caller.owner_id, caller.key_id)

    async def page(self, caller: Caller, window: Window) -> Page:
        """The picks of the caller's owner, those first that were made last."""
        query = select(comparison_picks).where(comparison_picks.c.owner_id == caller.owner_id)
        return await fetch_page(self._database, query, comparison_picks, window)

    async def wins(self, caller: Caller) -> tuple[Sequence[Wins], Sequence[Wins]]:
        """Of models and of servers, over the newest MOST_SUMMED picks of the caller's owner; the best first."""
        async with self._database.hot() as connection:
            models = await connection.fetch(WINS_OF_MODELS, caller.owner_id, MOST_SUMMED)
            servers = await connection.fetch(WINS_OF_SERVERS, caller.owner_id, MOST_SUMMED)
        return [Wins(**row) for row in models], [Wins(**row) for row in servers]
