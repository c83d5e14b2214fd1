"""Tickets: submit, look, wait, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic_core import PydanticCustomError
from sqlalchemy import select

from app.config import Settings
from app.db.engine import Database
from app.db.ids import time_of, uuid7
from app.db.tables import attempts, results
from app.errors import InvalidParameters, ResultNotFound
from app.queue.notify import SettledBoard
from app.queue.store import QueueStore
from app.queue.ticket import Status, Submission, phase_of, rank_of
from app.services.catalog import Catalog
from app.services.contexts import context_not_found
from app.services.pages import Page, Window, fetch_page
from app.telemetry import SUBMITTED
from app.triton.sampling import SamplingParameters

LOOK_AGAIN_SECONDS = 2.0

VISIBLE = (
    results.c.id,
    results.c.context_id,
    results.c.model,
    results.c.status,
    results.c.parameters,
    results.c.output,
    results.c.outputs,
    results.c.finish_reason,
    results.c.prompt_tokens,
    results.c.completion_tokens,
    results.c.error_code,
    results.c.error_message,
    results.c.attempt_count,
    results.c.attempt_token,
    results.c.priority,
    results.c.client_reference,
    results.c.cancel_requested_at,
    results.c.engine_stopped_at,
    results.c.created_at,
    results.c.started_at,
    results.c.completed_at,
    results.c.expires_at,
)
GET = f"SELECT {', '.join(column.name for column in VISIBLE)} FROM results WHERE id = $1"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Filters:
    status: Status | None = None
    model: str | None = None
    context_id: UUID | None = None
    client_reference: str | None = None


class Results:
    def __init__(
        self, database: Database, store: QueueStore, catalog: Catalog, board: SettledBoard, settings: Settings
    ) -> None:
        self._database = database
        self._store = store
        self._catalog = catalog
        self._board = board
        self._settings = settings

    async def submit(
        self,
        model: str,
        context_id: UUID,
        parameters: SamplingParameters,
        *,
        priority: int = 0,
        expires_in: float | None = None,
        client_reference: str | None = None,
    ) -> Submission:
        """Stores a ticket; committed when this returns. `expires_in` in seconds.

        Raises:
            InvalidParameters: the parameters contradict each other.
            ModelNotFound: no server has ever served the model.
            ContextNotFound: no such context.
        """
        try:
            engine_parameters = parameters.for_engine(self._settings.default_max_tokens)
        except PydanticCustomError as error:
            raise InvalidParameters(
                error.message(), errors=[{"field": "parameters", "message": error.message()}]
            ) from None
        await self._catalog.require(model)
        id_ = uuid7()
        created_at = time_of(id_)
        submission = Submission(
            id=id_,
            context_id=context_id,
            model=model,
            parameters=engine_parameters,
            priority=priority,
            rank=rank_of(created_at, priority, self._settings.priority_ageing_seconds),
            created_at=created_at,
            expires_at=None if expires_in is None else datetime.now(UTC) + timedelta(seconds=expires_in),
            client_reference=client_reference,
        )
        if not await self._store.submit([submission]):
            raise context_not_found(context_id)
        SUBMITTED.labels(model).inc()
        return submission

    async def get(self, id_: UUID) -> Mapping[str, Any]:
        """Raises ResultNotFound."""
        async with self._database.hot() as connection:
            row: Mapping[str, Any] | None = await connection.fetchrow(GET, id_)
        if row is None:
            raise ResultNotFound(f"No result has the id {id_}. GET /results/ lists those there are.")
        return row

    async def wait(self, id_: UUID, seconds: float) -> Mapping[str, Any]:
        """The result once it is final, or as it stands after `seconds`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with self._board.watching(id_) as settled:
            while True:
                settled.clear()
                row = await self.get(id_)
                left = end - loop.time()
                if Status(row["status"]).final or left <= 0 or self._board.closed:
                    return row
                try:
                    await asyncio.wait_for(settled.wait(), min(left, LOOK_AGAIN_SECONDS))
                except TimeoutError:
                    continue

    async def page(self, filters: Filters, window: Window) -> Page:
        query = select(*VISIBLE)
        for name in ("status", "model", "context_id", "client_reference"):
            value = getattr(filters, name)
            if value is not None:
                query = query.where(results.c[name] == value)
        return await fetch_page(self._database, query, results, window)

    async def cancel(self, id_: UUID) -> Mapping[str, Any]:
        """Asks for a cancel and returns the result; a final one is returned unchanged.

        Raises:
            ResultNotFound: no such result.
        """
        await self._store.cancel(id_)
        return await self.get(id_)

    async def attempts(self, id_: UUID) -> list[dict[str, Any]]:
        """The ended attempts of a result, first to last.

        Raises:
            ResultNotFound: no such result.
        """
        await self.get(id_)
        async with self._database.reading() as connection:
            found = await connection.execute(
                select(attempts).where(attempts.c.result_id == id_).order_by(attempts.c.number)
            )
            return [dict(row) for row in found.mappings()]


def phase(row: Mapping[str, Any]) -> str | None:
    return phase_of(
        Status(row["status"]),
        claimed=row["attempt_token"] is not None,
        cancel_requested=row["cancel_requested_at"] is not None,
    )
