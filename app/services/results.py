"""Tickets: submit, look, wait, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from pydantic_core import PydanticCustomError
from sqlalchemy import select

from app.config import Settings
from app.db.engine import Database
from app.db.ids import time_of, uuid7
from app.db.tables import attempts, results
from app.errors import AppError, InvalidParameters, LineDefective, ResultNotFound, ResultPending
from app.queue.notify import SettledBoard
from app.queue.store import QueueStore
from app.queue.submit import Submitter
from app.queue.ticket import Idempotency, Phase, Prompt, Status, Submission, phase_of, rank_of
from app.services.callers import Caller
from app.services.catalog import Catalog
from app.services.contexts import Contexts
from app.services.idempotency import idempotency_of, made_before
from app.services.limits import Limits
from app.services.pages import Listed, Page, Window, fetch_bounded_page
from app.services.retention import removed_or
from app.telemetry import SUBMITTED
from app.triton.sampling import EmbeddingParameters, SamplingParameters

LOOK_AGAIN_SECONDS = 2.0

VISIBLE = (
    results.c.id,
    results.c.context_id,
    results.c.retry_of,
    results.c.owner_id,
    results.c.kind,
    results.c.batch_id,
    results.c.request,
    results.c.webhook,
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
    results.c.available_at,
    results.c.rank,
)
# The request, as it came, is no part of what a list shows.
LISTED = Listed(
    results,
    columns=[column for column in VISIBLE if column is not results.c.request],
    large=(results.c.parameters, results.c.output, results.c.outputs),
)
GET = f"SELECT {', '.join(column.name for column in VISIBLE)} FROM results WHERE id = $1 AND owner_id = $2"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Filters:
    status: Status | None = None
    model: str | None = None
    context_id: UUID | None = None
    client_reference: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """`position` 1 is next; beyond the store's limit it stays at the limit plus one."""

    reason: Literal["queued", "no_server", "model_loading", "backoff"]
    position: int


class Results:
    def __init__(
        self,
        database: Database,
        store: QueueStore,
        contexts: Contexts,
        catalog: Catalog,
        board: SettledBoard,
        limits: Limits,
        settings: Settings,
    ) -> None:
        self._database = database
        self._store = store
        self._submitter = Submitter(store)
        self._contexts = contexts
        self._catalog = catalog
        self._board = board
        self._limits = limits
        self._reading: dict[tuple[UUID, int], asyncio.Task[Mapping[str, Any]]] = {}
        self._settings = settings

    async def submit(
        self,
        caller: Caller,
        model: str,
        context_id: UUID,
        parameters: SamplingParameters,
        *,
        priority: int = 0,
        expires_in: float | None = None,
        client_reference: str | None = None,
        idempotency_key: str | None = None,
        webhook: dict[str, Any] | None = None,
    ) -> tuple[Mapping[str, Any], bool]:
        """Stores a ticket, committed when this returns; True when an earlier request with the key had made it.

        `expires_in` in seconds; `webhook` as `accepted` gives it, the key's own where it is None. The row has at least
        the columns of a new ticket.

        Raises:
            InvalidParameters: the parameters contradict each other.
            ModelNotFound: no server has ever served the model.
            ContextNotFound: no such context.
            IdempotencyMismatch: the key came with another request before.
        """
        engine_parameters = self.for_engine(parameters)
        await self._catalog.require(model)
        idempotency = idempotency_of(
            idempotency_key,
            "send",
            model,
            context_id,
            engine_parameters,
            priority,
            expires_in,
            client_reference,
            webhook,
        )
        submission = self._submission(
            caller,
            context_id,
            model,
            engine_parameters,
            priority,
            expires_in,
            client_reference,
            idempotency=idempotency,
        )
        return await self._store_once(caller, replace(submission, webhook=webhook or caller.webhook))

    async def submit_prompt(
        self,
        caller: Caller,
        model: str,
        prompt: Prompt,
        parameters: SamplingParameters | EmbeddingParameters,
        *,
        kind: str,
        request: dict[str, Any],
        streamed: bool = False,
        priority: int = 0,
        expires_in: float | None = None,
        client_reference: str | None = None,
        idempotency_key: str | None = None,
        webhook: dict[str, Any] | None = None,
    ) -> tuple[Mapping[str, Any], bool]:
        """Stores a prompt and its ticket in one statement; otherwise as `submit`.

        `kind` and `request` are what the answer is rendered by.
        """
        engine_parameters = self.for_engine(parameters, nested=False)
        await self._catalog.require(model)
        submission = self._submission(
            caller,
            uuid7(),
            model,
            engine_parameters,
            priority,
            expires_in,
            client_reference,
            # A template may write the date into the prompt: the messages tell whether it is the same request.
            idempotency=idempotency_of(
                idempotency_key,
                kind,
                model,
                prompt.messages or prompt.content,
                prompt.metadata,
                engine_parameters,
                request,
                priority,
                expires_in,
                webhook,
            ),
        )
        return await self._store_once(
            caller,
            replace(
                submission,
                prompt=prompt,
                kind=kind,
                request=request,
                streamed=streamed,
                webhook=webhook or caller.webhook,
            ),
        )

    def for_engine(
        self, parameters: SamplingParameters | EmbeddingParameters, *, nested: bool = True
    ) -> dict[str, Any]:
        """The parameters as the engine gets them; raises InvalidParameters."""
        try:
            return parameters.for_engine(self._settings.default_max_tokens)
        except PydanticCustomError as error:
            raise InvalidParameters(
                error.message(), errors=[{"field": "parameters" if nested else error.type, "message": error.message()}]
            ) from None

    async def retry(
        self, caller: Caller, id_: UUID, idempotency_key: str | None = None
    ) -> tuple[Mapping[str, Any], bool]:
        """A new ticket for what a final result asked for; the old one stays. Returns as `submit` does.

        Raises:
            ResultNotFound: no such result.
            ResultPending: it is not final yet.
            LineDefective: it never had a prompt.
            IdempotencyMismatch: the key came with another request before.
        """
        old = await self.get(caller, id_)
        if not Status(old["status"]).final:
            raise ResultPending(f"Result {id_} is pending and will be run: wait for its end, or cancel it first.")
        if old["error_code"] == LineDefective.code:
            raise LineDefective(
                f"Result {id_} is a line of a batch that was never made into a prompt: send its request again instead."
            )
        life = None if old["expires_at"] is None else (old["expires_at"] - old["created_at"]).total_seconds()
        submission = self._submission(
            caller,
            old["context_id"],
            old["model"],
            old["parameters"],
            old["priority"],
            life,
            old["client_reference"],
            retry_of=id_,
            idempotency=idempotency_of(idempotency_key, "retry", id_),
        )
        webhook = old["webhook"] or caller.webhook
        return await self._store_once(
            caller, replace(submission, kind=old["kind"], request=old["request"], webhook=webhook)
        )

    def _submission(
        self,
        caller: Caller,
        context_id: UUID,
        model: str,
        parameters: dict[str, Any],
        priority: int,
        expires_in: float | None,
        client_reference: str | None,
        *,
        retry_of: UUID | None = None,
        idempotency: Idempotency | None = None,
    ) -> Submission:
        id_ = uuid7()
        created_at = time_of(id_)
        return Submission(
            id=id_,
            context_id=context_id,
            model=model,
            parameters=parameters,
            priority=priority,
            rank=rank_of(created_at, priority, self._settings.priority_ageing_seconds),
            created_at=created_at,
            expires_at=None if expires_in is None else datetime.now(UTC) + timedelta(seconds=expires_in),
            client_reference=client_reference,
            retry_of=retry_of,
            idempotency=idempotency,
            owner_id=caller.owner_id,
            key_id=caller.key_id,
        )

    async def _store_once(self, caller: Caller, submission: Submission) -> tuple[Mapping[str, Any], bool]:
        while not await self._store_within_limits(caller, submission):
            if earlier := await made_before(self._store, caller.owner_id, submission.idempotency):
                return await self.get(caller, earlier), True
            # Not the key, or a key that ran out just now: then the context decides.
            if submission.prompt is None:
                await self._contexts.get(caller, submission.context_id)
        SUBMITTED.labels(submission.model).inc()
        return _as_row(submission), False

    async def _store_within_limits(self, caller: Caller, submission: Submission) -> bool:
        async with self._limits.storing(caller, (submission.id,)):
            return await self._submitter.submit(submission)

    async def get(self, caller: Caller, id_: UUID) -> Mapping[str, Any]:
        """Raises ResultNotFound."""
        return await self._get(id_, caller.owner_id)

    async def _get(self, id_: UUID, owner_id: int) -> Mapping[str, Any]:
        async with self._database.hot() as connection:
            row: Mapping[str, Any] | None = await connection.fetchrow(GET, id_, owner_id)
        if row is None:
            raise self._missing(id_)
        return row

    def _missing(self, id_: UUID) -> AppError:
        return removed_or(
            id_,
            self._settings.result_retention_days,
            ResultNotFound(f"No result has the id {id_}. GET /results/ lists those there are."),
        )

    async def wait(
        self, caller: Caller, id_: UUID, seconds: float, gone: Callable[[], Awaitable[bool]]
    ) -> Mapping[str, Any]:
        """The result once it is final, or as it stands after `seconds`, or once whoever waits is `gone`.

        Raises:
            ResultNotFound: no such result.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with self._board.watching(id_) as settled:
            while True:
                settled.clear()
                row = await self._read_together(id_, caller.owner_id)
                left = end - loop.time()
                if Status(row["status"]).final or left <= 0 or self._board.closed or await gone():
                    return row
                try:
                    await asyncio.wait_for(settled.wait(), min(left, LOOK_AGAIN_SECONDS))
                except TimeoutError:
                    continue

    @property
    def stopping(self) -> bool:
        """Whether the process was asked to stop, so that waiting ends early."""
        return self._board.closed

    async def waiting(self, row: Mapping[str, Any]) -> Waiting | None:
        """Why a queued result does not run yet; None for every other one."""
        if phase(row) != Phase.QUEUED:
            return None
        state = self._catalog.state_of(row["model"])
        reason: Literal["queued", "no_server", "model_loading", "backoff"]
        if state == "loading":
            reason = "model_loading"
        elif state != "ready":
            reason = "no_server"
        elif row["available_at"] > datetime.now(UTC):
            reason = "backoff"
        else:
            reason = "queued"
        return Waiting(reason, await self._store.position(row["model"], row["rank"], row["id"], row["owner_id"]))

    async def _read_together(self, id_: UUID, owner_id: int) -> Mapping[str, Any]:
        """Thousands may wait for one result: those who look at the same moment share one query."""
        reading = self._reading.get((id_, owner_id))
        if reading is None:
            reading = self._reading[id_, owner_id] = asyncio.create_task(self._read(id_, owner_id))
        return await asyncio.shield(reading)

    async def _read(self, id_: UUID, owner_id: int) -> Mapping[str, Any]:
        # Whoever comes from here on may have been woken by something this query does not see yet.
        del self._reading[id_, owner_id]
        return await self._get(id_, owner_id)

    async def page(self, caller: Caller, filters: Filters, window: Window) -> Page:
        where = [results.c.owner_id == caller.owner_id]
        for name in ("status", "model", "context_id", "client_reference"):
            value = getattr(filters, name)
            if value is not None:
                where.append(results.c[name] == value)
        return await fetch_bounded_page(self._database, LISTED, where, window)

    async def cancel(self, caller: Caller, id_: UUID) -> Mapping[str, Any]:
        """Asks for a cancel and returns the result; a final one is returned unchanged.

        Raises:
            ResultNotFound: no such result.
        """
        await self._store.cancel(id_, caller.owner_id)
        return await self.get(caller, id_)

    async def attempts(self, caller: Caller, id_: UUID) -> list[dict[str, Any]]:
        """The ended attempts of a result, first to last.

        Raises:
            ResultNotFound: no such result.
        """
        await self.get(caller, id_)
        async with self._database.reading() as connection:
            found = await connection.execute(
                select(attempts).where(attempts.c.result_id == id_).order_by(attempts.c.number)
            )
            return [dict(row) for row in found.mappings()]


def _as_row(submission: Submission) -> dict[str, Any]:
    return {
        "id": submission.id,
        "context_id": submission.context_id,
        "model": submission.model,
        "status": Status.PENDING,
        "attempt_token": None,
        "cancel_requested_at": None,
        "created_at": submission.created_at,
        "retry_of": submission.retry_of,
    }


def phase(row: Mapping[str, Any]) -> str | None:
    return phase_of(
        Status(row["status"]),
        claimed=row["attempt_token"] is not None,
        cancel_requested=row["cancel_requested_at"] is not None,
    )
