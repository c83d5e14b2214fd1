"""One prompt to several models: made together, and read, cancelled and deleted as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select

from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.db.tables import comparison_picks, comparisons, contexts, result_events, results
from app.db.tables.contexts import Prompt
from app.errors import (
    AppError,
    ChatTemplateRefused,
    ComparisonNotFound,
    ComparisonPending,
    ModelNotFound,
    NoChatTemplate,
    NotFound,
    invalid,
)
from app.queue.audit import Action
from app.queue.comparisons import ComparisonStore, NewComparison
from app.queue.store import QueueStore
from app.queue.ticket import Idempotency, Status
from app.services.callers import Caller
from app.services.contexts import Contexts, note_deletion
from app.services.idempotency import made_before
from app.services.limits import Limits
from app.services.pages import PAGE_BYTES, Page, Window, fetch_page
from app.services.results import Results
from app.services.retention import removed_or
from app.services.submissions import Submissions
from app.services.wishes import ANY, Wish
from app.tasks.generate import SamplingParameters
from app.telemetry.metrics import SUBMITTED, of_model

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Contender:
    """A model of a comparison, what is asked of it, and where."""

    model: str
    parameters: SamplingParameters
    wish: Wish = ANY


@dataclass(frozen=True, slots=True)
class Comparison:
    """`row` is the comparison's own; `results` are those that are still there, by id, with at least their status."""

    row: Row
    results: Mapping[UUID, Row]

    @property
    def status(self) -> Status:
        """Pending while a result is; then completed if one is, else failed."""
        statuses = {result["status"] for result in self.results.values()}
        return next((each for each in (Status.PENDING, Status.COMPLETED) if each in statuses), Status.FAILED)


@contextmanager
def naming(place: int) -> Iterator[None]:
    """What is raised within names the entry at `place`; what its model lacks is the request's mistake, a 422."""
    try:
        yield
    except (ModelNotFound, NoChatTemplate, ChatTemplateRefused) as error:
        raise invalid(f"entries.{place}.model", error.detail) from None
    except AppError as error:
        error.detail = f"entries.{place}: {error.detail}"
        for each in error.errors or ():
            each["field"] = f"entries.{place}.{each['field']}"
        raise


class Comparisons:
    def __init__(
        self,
        database: Database,
        queue: QueueStore,
        contexts: Contexts,
        results: Results,
        submissions: Submissions,
        limits: Limits,
        settings: Settings,
    ) -> None:
        self._database = database
        self._store = ComparisonStore(database)
        self._queue = queue
        self._contexts = contexts
        self._results = results
        self._submissions = submissions
        self._limits = limits
        self._settings = settings

    async def made_before(self, caller: Caller, idempotency: Idempotency | None) -> UUID | None:
        """The id of the comparison that an earlier request with the key made; raises IdempotencyMismatch."""
        return await made_before(self._queue, caller.owner_id, idempotency)

    async def create(
        self,
        caller: Caller,
        prompt: Prompt | UUID,
        contenders: Sequence[Contender],
        *,
        priority: int,
        expires_in: float | None,
        client_reference: str | None,
        streamed: bool,
        webhook: dict[str, Any] | None,
        idempotency: Idempotency | None,
    ) -> tuple[UUID, bool]:
        """Stores a ticket for each contender, all or none, committed when this returns.

        `prompt` may be the id of a stored context. True when an earlier request with the key had made it.

        Raises:
            InvalidParameters: parameters of a contender contradict each other.
            ModelNotAllowed: the key may not use a model.
            LimitReached: the key has no room for all of them.
            ContextNotFound: no such context.
            IdempotencyMismatch: the key came with another request before.
        """
        context_id = prompt if isinstance(prompt, UUID) else uuid7()
        tickets = []
        for place, contender in enumerate(contenders):
            with naming(place):
                parameters = self._submissions.for_engine(contender.parameters)
                ticket = self._submissions.ticket(
                    caller, context_id, contender.model, parameters, priority, expires_in, client_reference
                )
            tickets.append(
                replace(ticket, streamed=streamed, webhook=webhook or caller.webhook, wish=contender.wish.stored)
            )
        new = NewComparison(
            uuid7(),
            caller.owner_id,
            caller.key_id,
            context_id,
            prompt if isinstance(prompt, Prompt) else None,
            tickets,
            idempotency,
        )
        async with self._limits.storing(caller, [ticket.id for ticket in tickets]):
            # The request itself was counted as one.
            await self._limits.admit(caller, work=False, counts=True, requests=len(tickets) - 1)
            while not await self._store.create(new):
                if earlier := await made_before(self._queue, caller.owner_id, idempotency):
                    return earlier, True
                # Not the key, or a key that ran out just now: then the context decides.
                if new.prompt is None:
                    await self._contexts.get(caller, context_id)
        for ticket in tickets:
            of_model(SUBMITTED, ticket.model).inc()
        return new.id, False

    async def get(self, caller: Caller, id_: UUID) -> Comparison:
        """With the answers, as far as their texts come to PAGE_BYTES together; raises ComparisonNotFound, Removed."""
        row = await self.row(caller, id_)
        return Comparison(row, await self._store.answers(row["result_ids"], caller.owner_id, PAGE_BYTES))

    async def row(self, caller: Caller, id_: UUID) -> Row:
        """Raises ComparisonNotFound, or Removed when the retention took it."""
        row = await self._store.get(id_, caller.owner_id)
        if row is None:
            raise self._missing(id_)
        return row

    async def wait(self, caller: Caller, id_: UUID, seconds: float, gone: Callable[[], Awaitable[bool]]) -> Comparison:
        """As `get`, once all results are final, or after `seconds`, or once whoever waits is `gone`."""
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        row = await self.row(caller, id_)
        statuses = await self._store.statuses(row["result_ids"], caller.owner_id)
        for result_id, status in statuses.items():
            if not Status(status).final:
                try:
                    await self._results.wait(caller, result_id, max(0.0, end - clock()), gone)
                except NotFound:
                    continue
        return await self.get(caller, id_)

    async def page(self, caller: Caller, window: Window) -> tuple[list[Comparison], Page]:
        """Newest first, without answers."""
        query = select(comparisons).where(comparisons.c.owner_id == caller.owner_id)
        page = await fetch_page(self._database, query, comparisons, window)
        ids = [id_ for row in page.rows for id_ in row["result_ids"]]
        statuses = await self._store.statuses(ids, caller.owner_id)
        shown = [
            Comparison(row, {id_: {"status": statuses[id_]} for id_ in row["result_ids"] if id_ in statuses})
            for row in page.rows
        ]
        return shown, page

    async def cancel(self, caller: Caller, id_: UUID) -> Comparison:
        """Asks for the cancel of each result; final ones stay as they are. Raises ComparisonNotFound."""
        row = await self.row(caller, id_)
        for result_id in row["result_ids"]:
            try:
                await self._results.cancel(caller, result_id)
            except NotFound:
                continue
        return await self.get(caller, id_)

    async def delete(self, caller: Caller, id_: UUID) -> None:
        """Removes a comparison with its results and picks, and its prompt where it came along and serves nothing else.

        Raises:
            ComparisonNotFound: no such comparison.
            ComparisonPending: some of its results are not final.
        """
        wanted = (comparisons.c.id == id_, comparisons.c.owner_id == caller.owner_id)
        async with self._database.changing() as queries:
            row = await queries.row(select(comparisons).where(*wanted).with_for_update())
            if row is None:
                raise self._missing(id_)
            # Holds off new results of the prompt until the end.
            await queries.value(select(contexts.c.id).where(contexts.c.id == row["context_id"]).with_for_update())
            ours = results.c.id.in_(row["result_ids"])
            pending = await queries.value(select(results.c.id).where(ours, results.c.status == Status.PENDING).limit(1))
            if pending is not None:
                raise ComparisonPending(
                    f"Result {pending} of this comparison is pending: cancel the comparison or wait for its end, then "
                    "delete it."
                )
            await note_deletion(queries, Action.COMPARISON_DELETED, caller, id_, [row["key_id"]])
            await queries.execute(delete(result_events).where(result_events.c.result_id.in_(row["result_ids"])))
            await queries.execute(delete(results).where(ours))
            await queries.execute(delete(comparison_picks).where(comparison_picks.c.comparison_id == id_))
            await queries.execute(delete(comparisons).where(*wanted))
            if row["with_prompt"]:
                others = select(results.c.id).where(results.c.context_id == row["context_id"]).exists()
                await queries.execute(delete(contexts).where(contexts.c.id == row["context_id"], ~others))

    def _missing(self, id_: UUID) -> AppError:
        return removed_or(
            id_,
            self._settings.result_retention_days,
            ComparisonNotFound(f"No comparison has the id {id_}. GET /comparisons/ lists those there are."),
        )
