"""Stored prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Select, delete, func, insert, join, literal, select, true
from sqlalchemy import UUID as UUIDType

from app.config import Settings
from app.db.engine import Database
from app.db.ids import time_of, uuid7
from app.db.queries import Queries
from app.db.tables import audit, batches, contexts, result_events, results
from app.db.tables.contexts import Prompt
from app.db.tables.declared import is_large
from app.errors import AppError, BatchNotEnded, ContextInUse, ContextNotFound, ResultNotFound, ResultPending
from app.queue.audit import Action
from app.queue.store import QueueStore, context_row, context_size
from app.queue.submit import Submitter
from app.queue.ticket import Status
from app.services.audit import actor_of
from app.services.callers import Caller
from app.services.idempotency import idempotency_of, made_before
from app.services.pages import Listed, Page, Window, fetch_bounded_page
from app.services.retention import removed_or

# Two keys are enough to tell that another one is among them.
MAKERS = 2
LISTED = Listed(contexts, columns=list(contexts.c), large=[column for column in contexts.c if is_large(column)])


async def _require_ended_batches(queries: Queries, which: ColumnElement[bool]) -> None:
    """A batch becomes final in the transaction that writes its files: until then they are written from its results."""
    row = await queries.row(
        select(results.c.id, results.c.batch_id)
        .join(batches, batches.c.id == results.c.batch_id)
        .where(which, batches.c.lease_until.is_not(None))
        .limit(1)
    )
    if row is not None:
        raise BatchNotEnded(
            f"Result {row['id']} is a line of batch_{row['batch_id'].hex}, which has not ended and needs it for its "
            "files: cancel the batch or wait for its end, then delete."
        )


def newest_requests(ids: Sequence[UUID]) -> Select[Any]:
    asked = func.unnest(literal(list(ids), ARRAY(UUIDType))).table_valued("id", name="asked").render_derived()
    newest = (
        select(results.c.context_id, results.c.model, results.c.kind, results.c.request)
        .where(results.c.context_id == asked.c.id)
        # The order of the index results_by_context: a context may have been sent any number of times.
        .order_by(results.c.context_id.desc(), results.c.id.desc())
        .limit(1)
        .lateral()
    )
    return select(newest).select_from(join(asked, newest, true()))


async def note_deletion(
    queries: Queries, action: Action, caller: Caller, id_: UUID, makers: Sequence[UUID | None]
) -> None:
    """Who made a prompt is known by its results: without any, it counts as another's."""
    others = [key_id for key_id in makers or ([] if caller.key_id is None else [None]) if key_id != caller.key_id]
    if others:
        await queries.execute(
            insert(audit).values(
                action=action.value,
                actor_key_id=caller.key_id,
                actor=actor_of(caller).name,
                owner_id=caller.owner_id,
                subject=str(id_),
                subject_key_id=others[0],
            )
        )


def owned_by(caller: Caller) -> ColumnElement[bool]:
    return contexts.c.owner_id == caller.owner_id


class Contexts:
    def __init__(self, database: Database, store: QueueStore, settings: Settings) -> None:
        self._database = database
        self._store = store
        self._submitter = Submitter(store.create_contexts, context_size)
        self._settings = settings

    async def create(
        self, caller: Caller, prompt: Prompt, idempotency_key: str | None = None
    ) -> tuple[Mapping[str, Any], bool]:
        """Stores a prompt, committed when this returns; True when an earlier request with the key had made it.

        Raises:
            IdempotencyMismatch: the key came with another request before.
        """
        said = (prompt.content,) if prompt.inputs is None else (None, prompt.inputs)
        idempotency = idempotency_of(idempotency_key, "contexts", *said, prompt.metadata)
        id_ = uuid7()
        created_at = time_of(id_)
        row = context_row(id_, prompt, created_at, idempotency, caller.owner_id)
        while not await self._submitter.submit(id_, row, keyed=idempotency is not None):
            # The key may have run out between the two statements: then it is free.
            if earlier := await made_before(self._store, caller.owner_id, idempotency):
                return await self.get(caller, earlier), True
        return {"id": id_, "created_at": created_at, **asdict(prompt)}, False

    async def get(self, caller: Caller, id_: UUID) -> Mapping[str, Any]:
        """Raises ContextNotFound, or Removed when the retention took it."""
        async with self._database.reading() as queries:
            row = await queries.row(select(contexts).where(contexts.c.id == id_, owned_by(caller)))
        if row is None:
            raise self.missing(id_)
        return row

    async def requests(self, ids: Sequence[UUID]) -> dict[UUID, Mapping[str, Any]]:
        """Of contexts, the `model`, `kind` and `request` of the newest ticket each was sent with."""
        async with self._database.reading() as queries:
            return {row["context_id"]: row for row in await queries.rows(newest_requests(ids))}

    async def page(self, caller: Caller, window: Window) -> Page:
        return await fetch_bounded_page(self._database, LISTED, [owned_by(caller)], window)

    async def delete(self, caller: Caller, id_: UUID) -> None:
        """Removes a prompt with all its results and attempts.

        Raises:
            ContextNotFound: no such context.
            ContextInUse: some of its results are pending.
            BatchNotEnded: some of its results are not in their batch's files yet.
        """
        async with self._database.changing() as queries:
            # Holds off new results of this context until the end.
            locked = select(contexts.c.id).where(contexts.c.id == id_, owned_by(caller)).with_for_update()
            if await queries.row(locked) is None:
                raise self.missing(id_)
            await _require_ended_batches(queries, results.c.context_id == id_)
            pending = await queries.value(
                select(results.c.id).where(results.c.context_id == id_, results.c.status == Status.PENDING).limit(1)
            )
            if pending is not None:
                raise ContextInUse(
                    f"Result {pending} of this context is pending: cancel it or wait for its end, then delete."
                )
            made_by = select(results.c.key_id).where(results.c.context_id == id_).distinct().limit(MAKERS)
            makers = [row["key_id"] for row in await queries.rows(made_by)]
            await note_deletion(queries, Action.CONTEXT_DELETED, caller, id_, makers)
            await queries.execute(delete(results).where(results.c.context_id == id_))
            await queries.execute(delete(contexts).where(contexts.c.id == id_))

    async def delete_result(self, caller: Caller, id_: UUID) -> None:
        """Removes a final result with its attempts and events, and its prompt where no other result was made of it.

        Raises:
            ResultNotFound: no such result.
            ResultPending: it is not final.
            BatchNotEnded: it is not in its batch's files yet.
        """
        wanted = (results.c.id == id_, results.c.owner_id == caller.owner_id)
        async with self._database.changing() as queries:
            # Holds off new results of the prompt until the end.
            context_id = await queries.value(
                select(contexts.c.id)
                .where(contexts.c.id == select(results.c.context_id).where(*wanted).scalar_subquery())
                .with_for_update()
            )
            row = await queries.row(select(results.c.status, results.c.key_id).where(*wanted))
            if row is None:
                raise ResultNotFound(f"No result has the id {id_}. GET /results/ lists those there are.")
            if not Status(row["status"]).final:
                raise ResultPending(f"Result {id_} is pending: cancel it or wait for its end, then delete it.")
            await _require_ended_batches(queries, results.c.id == id_)
            await note_deletion(queries, Action.RESULT_DELETED, caller, id_, [row["key_id"]])
            await queries.execute(delete(result_events).where(result_events.c.result_id == id_))
            await queries.execute(delete(results).where(results.c.id == id_))
            others = select(results.c.id).where(results.c.context_id == context_id).exists()
            await queries.execute(delete(contexts).where(contexts.c.id == context_id, ~others))

    def missing(self, id_: UUID) -> AppError:
        return removed_or(
            id_,
            self._settings.result_retention_days,
            ContextNotFound(f"No context has the id {id_}. POST /contexts/ stores one and returns its id."),
        )
