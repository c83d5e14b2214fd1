"""Tickets as people look for them: filters that combine, the beginnings of texts, and how many there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, and_, cast, func, literal, select, true

from app.db.engine import Database
from app.db.ids import FIRST_ID, lowest_at, time_of
from app.db.tables import contexts, results
from app.queue.ticket import CANCELLED
from app.queue.words import Wanted
from app.services.callers import Caller
from app.services.ticket_words import CLOCKS_APART, FoundIds, TicketWords, upper_bound

# Numbers are exact up to this.
MOST_COUNTED = 10_000
BEGINNING_CHARS = 160
EXPORTED_AT_ONCE = 20
# What is offered to choose from is that of so many of the newest tickets, and no more than so many values.
LOOKED_AT, OFFERED = 2000, 50
SEEN = ("error_code", "server", "client_reference")


class State(StrEnum):
    """Status and phase in one word; what was cancelled on request did not fail."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Search:
    """Which tickets; prompt, answer and error together have all the words of `text`, whatever their case."""

    state: State | None = None
    model: str | None = None
    reference: str | None = None
    batch_id: UUID | None = None
    server: str | None = None
    # That they were sent with.
    key_id: UUID | None = None
    error_code: str | None = None
    text: str | None = None
    # A path into the metadata of the prompt, and what stands there as text.
    metadata: tuple[Sequence[str], str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    @property
    def by_words(self) -> bool:
        """Whether the index of words and properties finds them, which has final tickets only.

        One property that the table's own indexes are in the order of needs it not.
        """
        ordered = (self.state, self.model, self.reference, self.batch_id)
        return bool(
            self.server
            or self.key_id
            or self.error_code
            or self.text
            or self.metadata
            or self.state in (State.RUNNING, State.FAILED, State.CANCELLED)
            or sum(each is not None for each in ordered) > 1
        )

    @property
    def unfinished(self) -> bool:
        return self.state in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True, slots=True)
class TicketPage:
    """`next_before` is the `before` of the next page, None on the last one.

    `looked_back_to` says how far a search came in its time: older tickets are for the next page.
    """

    rows: Sequence[Any]
    next_before: UUID | None
    looked_back_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """`exact` is False where there are more than `number`, or may be: a search looked back only so far in its time."""

    number: int
    exact: bool

    @property
    def many(self) -> bool:
        return not self.exact and self.number == MOST_COUNTED


@dataclass(frozen=True, slots=True)
class Seen:
    """Values that tickets have."""

    errors: Sequence[str]
    servers: Sequence[str]
    references: Sequence[str]


_LAST_SAID = contexts.c.messages[-1]["content"]
_PROMPT = func.left(func.coalesce(contexts.c.content, _LAST_SAID.astext, cast(_LAST_SAID, Text)), BEGINNING_CHARS)
_SHOWN: tuple[ColumnElement[Any], ...] = (
    *(
        results.c[name]
        for name in (
            *("id", "model", "status", "attempt_token", "cancel_requested_at", "created_at", "started_at"),
            *("completed_at", "completion_tokens", "server", "error_code", "batch_id", "client_reference", "task"),
        )
    ),
    func.left(results.c.error_message, BEGINNING_CHARS).label("error"),
    func.left(results.c.output, BEGINNING_CHARS).label("answer"),
    _PROMPT.label("prompt"),
)


# Of each ticket that is exported, and of its prompt.
EXPORTED = (
    *("id", "created_at", "completed_at", "model", "status", "output", "finish_reason", "error_code", "error_message"),
    *("prompt_tokens", "completion_tokens", "cost", "server", "attempt_count", "batch_id", "client_reference"),
    "parameters",
)
EXPORTED_OF_PROMPT = ("content", "messages", "metadata")


class TicketList:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._words = TicketWords(database)

    async def page(self, caller: Caller, search: Search, limit: int, before: UUID | None = None) -> TicketPage:
        """The newest of the caller's tickets that the search finds; `before` is the `next_before` of another page."""
        found = await self._newest(caller, search, limit + 1, before)
        query = (
            select(*_SHOWN)
            .join_from(results, contexts, contexts.c.id == results.c.context_id, isouter=True)
            .where(results.c.id.in_(found.ids[:limit]), results.c.owner_id == caller.owner_id)
            .order_by(results.c.id.desc())
        )
        async with self._database.reading() as queries:
            rows = await queries.rows(query)
        if len(found.ids) > limit:
            return TicketPage(rows, found.ids[limit - 1])
        until = found.looked_back_to
        return TicketPage(rows, None if until is None else lowest_at(until), until)

    async def count(self, caller: Caller, search: Search) -> Counted:
        """How many it finds, of all pages."""
        if search.by_words:
            wanted = _wanted(caller, search)
            number, whole = await self._words.count(wanted, MOST_COUNTED, final=not search.unfinished)
            return Counted(min(number, MOST_COUNTED), whole and number <= MOST_COUNTED)
        found = _found(caller, search).limit(MOST_COUNTED + 1).subquery()
        async with self._database.reading() as queries:
            number = await queries.value(select(func.count()).select_from(found))
        return Counted(min(number, MOST_COUNTED), number <= MOST_COUNTED)

    async def _newest(self, caller: Caller, search: Search, limit: int, before: UUID | None) -> FoundIds:
        if search.by_words:
            return await self._words.newest(_wanted(caller, search, before), limit, final=not search.unfinished)
        query = _found(caller, search, before).order_by(results.c.id.desc()).limit(limit)
        async with self._database.reading() as queries:
            return FoundIds([row["id"] for row in await queries.rows(query)], None)

    async def prompts(self, caller: Caller, context_ids: Sequence[UUID]) -> dict[UUID, str | None]:
        """The beginnings of the caller's prompts that are there still, None for tensors."""
        query = select(contexts.c.id, _PROMPT.label("prompt")).where(
            contexts.c.id.in_(context_ids), contexts.c.owner_id == caller.owner_id
        )
        async with self._database.reading() as queries:
            return {row["id"]: row["prompt"] for row in await queries.rows(query)}

    async def ids(self, caller: Caller, search: Search, before: UUID | None = None) -> list[UUID]:
        """The newest MOST_COUNTED that it finds, newest first; `before` is the last id of the call before."""
        ids: list[UUID] = []
        while len(ids) < MOST_COUNTED:
            found = await self._newest(caller, search, MOST_COUNTED - len(ids), before)
            ids += found.ids
            if found.looked_back_to is None:
                break
            before = lowest_at(found.looked_back_to)
        return ids

    async def export(self, caller: Caller, search: Search) -> AsyncIterator[Mapping[str, Any]]:
        """All that it finds, newest first and whole, of which few are held at once."""
        before = None
        while ids := await self.ids(caller, search, before):
            for place in range(0, len(ids), EXPORTED_AT_ONCE):
                part = results.c.id.in_(ids[place : place + EXPORTED_AT_ONCE])
                async with self._database.reading() as queries:
                    rows = await queries.rows(_exported().where(part).order_by(results.c.id.desc()))
                for row in rows:
                    yield row
            before = ids[-1]

    async def export_batch(self, caller: Caller, batch_id: UUID) -> AsyncIterator[Mapping[str, Any]]:
        """The tickets of a batch whole, in the order of its lines, of which few are held at once."""
        line = 0
        while True:
            query = (
                _exported()
                .add_columns(results.c.batch_line)
                .where(
                    results.c.batch_id == batch_id,
                    results.c.batch_line > line,
                    results.c.owner_id == caller.owner_id,
                )
                .order_by(results.c.batch_line)
                .limit(EXPORTED_AT_ONCE)
            )
            async with self._database.reading() as queries:
                rows = await queries.rows(query)
            for row in rows:
                yield row
            if len(rows) < EXPORTED_AT_ONCE:
                return
            line = rows[-1]["batch_line"]

    async def seen(self, caller: Caller) -> Seen:
        """What the newest of the caller's tickets have, to choose from."""
        newest = (
            select(*(results.c[name] for name in SEEN))
            .where(results.c.owner_id == caller.owner_id)
            .order_by(results.c.id.desc())
            .limit(LOOKED_AT)
            .subquery()
        )
        async with self._database.reading() as queries:
            rows = await queries.rows(select(newest).distinct().limit(LOOKED_AT))
        values = [sorted({row[name] for row in rows if row[name]})[:OFFERED] for name in SEEN]
        return Seen(*values)


def _exported() -> Select[Any]:
    return select(
        *(results.c[name] for name in EXPORTED), *(contexts.c[name] for name in EXPORTED_OF_PROMPT)
    ).join_from(results, contexts, contexts.c.id == results.c.context_id, isouter=True)


def _found(caller: Caller, search: Search, before: UUID | None = None) -> Select[Any]:
    """Ids of tickets with one property at most, which an index has in their order."""
    where = [results.c.owner_id == caller.owner_id, *_before(results.c.id, before)]
    if search.state is not None:
        where.append(_in_state(search.state))
    for column, value in (
        (results.c.model, search.model),
        (results.c.client_reference, search.reference),
        (results.c.batch_id, search.batch_id),
    ):
        if value is not None:
            where.append(column == value)
    if search.created_after is not None:
        where += [results.c.id >= lowest_at(search.created_after), results.c.created_at >= search.created_after]
    if search.created_before is not None:
        where.append(results.c.id < lowest_at(search.created_before))
    return select(results.c.id).where(*where)


def _wanted(caller: Caller, search: Search, before: UUID | None = None) -> Wanted:
    since, until = search.created_after, search.created_before
    cancelled = search.state is State.CANCELLED
    lowest = FIRST_ID if since is None else lowest_at(since)
    if search.batch_id is not None and search.batch_id.version == 7:
        # Its tickets came after it, by the clock of another process.
        lowest = max(lowest, lowest_at(time_of(search.batch_id) - CLOCKS_APART))
    return Wanted(
        caller.owner_id,
        lowest=lowest,
        below=upper_bound(before, until),
        state=State.FAILED if cancelled else search.state,
        model=search.model,
        server=search.server,
        key_id=search.key_id,
        error_code=CANCELLED if cancelled else search.error_code,
        but_error_code=CANCELLED if search.state is State.FAILED else None,
        reference=search.reference,
        batch_id=search.batch_id,
        metadata=search.metadata,
        text=search.text,
    )


def _in_state(state: State) -> ColumnElement[bool]:
    if state is State.COMPLETED:
        return results.c.status == state.value
    claimed = results.c.attempt_token.is_not(None)
    return and_(results.c.status == "pending", claimed if state is State.RUNNING else ~claimed)


def _before(column: ColumnElement[UUID], id_: UUID | None) -> Sequence[ColumnElement[bool]]:
    return (true(),) if id_ is None else (column < literal(id_),)
