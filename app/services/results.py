"""Tickets that exist: look, wait, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, select

from app.config import Settings
from app.db.engine import Database
from app.db.ids import FIRST_ID, LAST_ID, end_of, lowest_at
from app.db.tables import attempts, results
from app.db.tables.declared import is_large
from app.errors import AppError, DatabaseUnavailable, Removed, ResultNotFound
from app.queue.columns import RESULT
from app.queue.notify import SettledBoard
from app.queue.statements.position import POSITION_OF_ROW
from app.queue.store import QueueStore
from app.queue.ticket import Phase, Status, phase_of, rank_of
from app.queue.unkept import UnkeptStore
from app.queue.words import Wanted
from app.services.audit import actor_of
from app.services.callers import Caller
from app.services.catalog import Catalog
from app.services.pages import Listed, Page, Window, fetch_bounded_page
from app.services.plans import Plans
from app.services.retention import removed_or
from app.services.ticket_walk import PROPERTIES, walked
from app.services.ticket_words import TicketWords, upper_bound
from app.services.wishes import Wish, Wishes

LOOK_AGAIN_SECONDS = 2.0
# In one transaction.
CANCELLED_AT_ONCE = 500
# Where a host would help.
PLANNED_FOR = ("queued", "no_server")

# The request, as it came, is no part of what a list shows.
_LISTED = [column for column in results.c if column is not results.c.request]
LISTED = Listed(results, columns=_LISTED, large=[column for column in _LISTED if is_large(column)])
GET = f"SELECT {RESULT} FROM results WHERE id = $1 AND owner_id = $2"  # noqa: S608
GET_PLACED = f"SELECT {RESULT}, {POSITION_OF_ROW} AS position FROM results r WHERE id = $1 AND owner_id = $2"  # noqa: S608
# As `Database.keep_ready` takes it.
READING = (GET, (FIRST_ID, 0))
GET_MANY = GET.replace("id = $1", "id = ANY ($1::uuid[])", 1)


@dataclass(frozen=True, slots=True)
class Filters:
    status: Status | None = None
    model: str | None = None
    context_id: UUID | None = None
    client_reference: str | None = None
    # Words that prompt, answer and error together have.
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """`position` 1 is next; beyond the store's limit it stays at the limit plus one. `detail` explains more."""

    reason: str
    position: int
    detail: str | None = None
    # So many seconds before its arrival it counts, because it expires soon; None where it does not.
    ahead_seconds: float | None = None
    # The host that is started for it: its id, what it does, and when it is to be ready.
    host: str | None = None
    step: str | None = None
    estimated_ready_at: datetime | None = None


class Results:
    def __init__(
        self,
        database: Database,
        store: QueueStore,
        catalog: Catalog,
        wishes: Wishes,
        board: SettledBoard,
        settings: Settings,
    ) -> None:
        self._database = database
        self._store = store
        self._catalog = catalog
        self._wishes = wishes
        self._plans = Plans(database)
        self._board = board
        self._unkept = UnkeptStore(database)
        self._words = TicketWords(database)
        self._reading: dict[tuple[UUID, int], asyncio.Task[Mapping[str, Any]]] = {}
        self._settings = settings

    async def get(self, caller: Caller, id_: UUID) -> Mapping[str, Any]:
        """Raises ResultNotFound."""
        return await self._get(id_, caller.owner_id)

    async def get_placed(self, caller: Caller, id_: UUID) -> Mapping[str, Any]:
        """As `get`, with its place in the queue, which `waiting` then need not ask for."""
        return await self._get(id_, caller.owner_id, GET_PLACED)

    async def _get(self, id_: UUID, owner_id: int, statement: str = GET) -> Mapping[str, Any]:
        async with self._database.hot() as connection:
            row: Mapping[str, Any] | None = await connection.fetchrow(statement, id_, owner_id)
        if row is None:
            raise self._missing(id_)
        return row

    async def get_many(self, caller: Caller, ids: Collection[UUID]) -> dict[UUID, Mapping[str, Any]]:
        """Those of the results that there are."""
        async with self._database.hot() as connection:
            return {row["id"]: row for row in await connection.fetch(GET_MANY, list(ids), caller.owner_id)}

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
                    async with asyncio.timeout(min(left, LOOK_AGAIN_SECONDS)):
                        await settled.wait()
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
        reason: str = self._catalog.waiting_reason(row["model"])
        if reason == "queued" and row["available_at"] > datetime.now(UTC):
            reason = "backoff"
        _, detail = self._catalog.state_of(row["model"])
        if row["wish"] and (unmet := self._wishes.unmet(Wish.of(row["wish"]), row["model"])):
            reason, detail = "no_server", unmet
        position = row.get("position")
        if position is None:
            position = await self._store.position(row["model"], row["rank"], row["id"], row["owner_id"], row["wish"])
        waiting = Waiting(reason, position, detail or None, self._ahead_seconds(row))
        if reason in PLANNED_FOR and not row["wish"] and (planned := await self._plans.of(row["model"])) is not None:
            return replace(waiting, **planned)
        return waiting

    def _ahead_seconds(self, row: Mapping[str, Any]) -> float | None:
        if row["expires_at"] is None:
            return None
        arrival = rank_of(row["created_at"], row["priority"], self._settings.priority_ageing_seconds)
        return max(0.0, (arrival - row["rank"]).total_seconds()) or None

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
        """One that is searched for, by words or by several properties, may hold fewer than there is room for, or none,
        and there be another."""
        asked = {name: value for name in PROPERTIES if (value := getattr(filters, name)) is not None}
        wanted = {"owner_id": caller.owner_id, **asked}
        where = [results.c[name] == value for name, value in wanted.items()]
        if filters.text is not None:
            return await self._with_words(caller, filters, where, window)
        if not asked:
            return await fetch_bounded_page(self._database, LISTED, where, window)
        lowest, below = _bounds(window)
        ids, older = await walked(self._database, wanted, lowest, below, window.limit + 1)
        return await self._page_of(ids, older, where, window)

    async def _with_words(
        self, caller: Caller, filters: Filters, where: Sequence[ColumnElement[bool]], window: Window
    ) -> Page:
        status = filters.status
        lowest, below = _bounds(window)
        wanted = Wanted(
            caller.owner_id,
            lowest=lowest,
            below=upper_bound(below, None),
            state=status if status is not None and status.final else None,
            model=filters.model,
            reference=filters.client_reference,
            text=filters.text,
        )
        found = await self._words.newest(wanted, window.limit + 1, final=status is not Status.PENDING)
        older = None if found.looked_back_to is None else lowest_at(found.looked_back_to)
        return await self._page_of(found.ids, older, where, window)

    async def _page_of(
        self, found: Sequence[UUID], older: UUID | None, where: Sequence[ColumnElement[bool]], window: Window
    ) -> Page:
        """The page of the ids that were found, one more than it takes where there are; `older` ones are below that."""
        ids = found[: window.limit]
        page = await fetch_bounded_page(self._database, LISTED, [*where, results.c.id.in_(ids)], window)
        if page.next_after is not None:
            return page
        return Page(page.rows, ids[-1] if len(found) > window.limit else older)

    async def cancel(self, caller: Caller, id_: UUID) -> Mapping[str, Any]:
        """Asks for a cancel and returns the result; a final one is returned unchanged.

        Raises:
            ResultNotFound: no such result.
        """
        await self._store.cancel(id_, caller.owner_id, actor_of(caller))
        return await self.get(caller, id_)

    async def cancel_many(self, caller: Caller, ids: Sequence[UUID]) -> int:
        """Asks for the cancel of the caller's own among them that are not final; returns of how many it was new."""
        cancelled = 0
        for place in range(0, len(ids), CANCELLED_AT_ONCE):
            part = ids[place : place + CANCELLED_AT_ONCE]
            cancelled += await self._store.cancel_many(part, caller.owner_id, actor_of(caller))
        return cancelled

    async def forget(self, ids: Collection[UUID]) -> None:
        """Removes the texts of results that are not kept, once their answers were delivered.

        What Postgres cannot do now, a dispatcher does later.
        """
        with suppress(DatabaseUnavailable):
            await self._unkept.forget(ids)

    async def attempts(self, caller: Caller, id_: UUID) -> list[dict[str, Any]]:
        """The ended attempts of a result, first to last.

        Raises:
            ResultNotFound: no such result.
        """
        await self.get(caller, id_)
        async with self._database.reading() as queries:
            return await queries.rows(select(attempts).where(attempts.c.result_id == id_).order_by(attempts.c.number))


def _bounds(window: Window) -> tuple[UUID, UUID]:
    """The ids of a window: from the first to below the second."""
    lowest = FIRST_ID if window.created_after is None else lowest_at(window.created_after)
    below = window.after or LAST_ID
    if window.created_before is not None:
        below = min(below, end_of(window.created_before))
    return lowest, below


def phase(row: Mapping[str, Any]) -> str | None:
    return phase_of(
        Status(row["status"]),
        claimed=row["attempt_token"] is not None,
        cancel_requested=row["cancel_requested_at"] is not None,
    )


def require_texts(row: Mapping[str, Any]) -> None:
    """Raises Removed for a result that was not kept and is delivered."""
    if not row["kept"] and row["request"] is None:
        raise Removed(
            f"Result {row['id']} came with store: false: its answer was delivered, or nobody waited for it, and was "
            "removed. Send the request again, with another Idempotency-Key if it had one."
        )


async def never_gone() -> bool:
    """For readers that are cancelled when their client goes away, as an EventStream's are."""
    return False
