"""Ratings: what people think of answers, each key once for an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select

from app.db.engine import Database
from app.db.ids import uuid7
from app.db.tables import ratings, results
from app.errors import ResultPending
from app.queue.ticket import Status
from app.services.callers import Caller
from app.services.pages import Page, Window, fetch_page
from app.services.results import Results

GOOD, BAD = 1, -1
RATINGS = {"good": GOOD, "bad": BAD}
MOST_COMMENT_CHARS = 10_000

SET = """
INSERT INTO ratings (result_id, owner_id, key_id, rating, comment, id) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (result_id, key_id) DO UPDATE
SET id = excluded.id, rating = excluded.rating, comment = excluded.comment, created_at = now()
RETURNING *
"""
REMOVE = "DELETE FROM ratings WHERE result_id = $1 AND owner_id = $2 AND key_id IS NOT DISTINCT FROM $3::uuid"
OF = """
SELECT result_id, rating, comment FROM ratings
WHERE result_id = ANY ($1::uuid[]) AND owner_id = $2 AND key_id IS NOT DISTINCT FROM $3::uuid
"""

Row = Mapping[str, Any]


class Ratings:
    def __init__(self, database: Database, results: Results) -> None:
        self._database = database
        self._results = results

    async def set(self, caller: Caller, result_id: UUID, rating: int, comment: str | None) -> Row:
        """The caller's rating, GOOD or BAD, in place of an earlier one.

        Raises:
            ResultNotFound: no such result.
            ResultPending: it has no answer yet.
        """
        row = await self._results.get(caller, result_id)
        if row["status"] == Status.PENDING:
            raise ResultPending(f"Result {result_id} is pending: wait for its end, then rate it.")
        async with self._database.hot() as connection:
            stored = await connection.fetchrow(
                SET, result_id, caller.owner_id, caller.key_id, rating, comment or None, uuid7()
            )
        return {**stored, "model": row["model"]}

    async def remove(self, caller: Caller, result_id: UUID) -> None:
        """Takes the caller's rating back, if there is one; raises ResultNotFound."""
        await self._results.get(caller, result_id)
        async with self._database.hot() as connection:
            await connection.execute(REMOVE, result_id, caller.owner_id, caller.key_id)

    async def of(self, caller: Caller, result_ids: Sequence[UUID]) -> dict[UUID, Row]:
        """The caller's own."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(OF, list(result_ids), caller.owner_id, caller.key_id)
        return {row["result_id"]: row for row in rows}

    async def page(
        self, caller: Caller, window: Window, *, model: str | None = None, rating: int | None = None
    ) -> Page:
        """Those of all keys of the caller's owner with the `model` of each, those first that were given last."""
        query = select(ratings, results.c.model).join(results, results.c.id == ratings.c.result_id)
        query = query.where(ratings.c.owner_id == caller.owner_id)
        if model is not None:
            query = query.where(results.c.model == model)
        if rating is not None:
            query = query.where(ratings.c.rating == rating)
        return await fetch_page(self._database, query, ratings, window)
