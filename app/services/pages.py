"""Cursor pages: newest first, by id, which sorts by time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import add
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Select, Text, any_, cast, func, literal, select
from sqlalchemy import UUID as UUIDType
from sqlalchemy.sql.schema import Table

from app.db.engine import Database
from app.db.ids import end_of, lowest_at
from app.queue.bulk import statements_of

# Where the rows of a page hold more, it ends early.
PAGE_BYTES = 8 * 1024 * 1024
# As they are stored: what is read at once.
SLICE_BYTES = 1024 * 1024
BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Page:
    """Rows as mappings; `next_after` is the cursor of the next page, None on the last one."""

    rows: Sequence[Any]
    next_after: UUID | None


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a list is asked for; the bounds are exclusive."""

    limit: int
    after: UUID | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """What a list shows; `large` are those of its columns that can be, texts and JSON documents.

    Sizes are looked up without reading the values, but that of a document is what it was compressed to. So the page is
    read slice by slice, counting what the documents really come to: it costs what it shows, and one slice at most.
    """

    table: Table
    columns: Sequence[ColumnElement[Any]]
    large: Sequence[ColumnElement[Any]]

    def page(self, where: Sequence[ColumnElement[bool]]) -> Select[Any]:
        sizes = [
            func.octet_length(column) if isinstance(column.type, Text) else func.pg_column_size(column)
            for column in self.large
        ]
        return select(self.table.c.id, _sum(sizes)).where(*where)

    def slice(self, where: Sequence[ColumnElement[bool]], ids: Sequence[UUID]) -> Select[Any]:
        shown = _sum([func.octet_length(cast(column, Text)) for column in self.large])
        query = select(*self.columns, shown).where(*where, self.table.c.id == any_(literal(ids, ARRAY(UUIDType))))
        return query.order_by(self.table.c.id.desc())


def _sum(sizes: Sequence[ColumnElement[int]]) -> ColumnElement[int]:
    return reduce(add, (func.coalesce(size, 0) for size in sizes)).label(BYTES)


async def fetch_bounded_page(
    database: Database, listed: Listed, where: Sequence[ColumnElement[bool]], window: Window
) -> Page:
    """Rows for which `where` holds; a page ends early, after one row at least, where it exceeds PAGE_BYTES."""
    sizes = await fetch_page(database, listed.page(where), listed.table, window)
    rows: list[Any] = []
    total = 0
    for part in statements_of(sizes.rows, window.limit, lambda row: row[BYTES], SLICE_BYTES):
        async with database.reading() as queries:
            found = await queries.rows(listed.slice(where, [row["id"] for row in part]))
        for row in found:
            total += row[BYTES]
            if rows and total > PAGE_BYTES:
                return Page(rows, rows[-1]["id"])
            rows.append(row)
    return Page(rows, sizes.next_after)


async def fetch_page(database: Database, query: Select[Any], table: Table, window: Window) -> Page:
    """Runs `query` over `table` as one page."""
    if window.after is not None:
        query = query.where(table.c.id < window.after)
    # The id holds the millisecond of creation, so its index bounds the scan; created_at is exact.
    if window.created_after is not None:
        query = query.where(table.c.id >= lowest_at(window.created_after), table.c.created_at > window.created_after)
    if window.created_before is not None:
        query = query.where(
            table.c.id < end_of(window.created_before),
            table.c.created_at < window.created_before,
        )
    async with database.reading() as queries:
        rows = await queries.rows(query.order_by(table.c.id.desc()).limit(window.limit + 1))
    more = len(rows) > window.limit
    rows = rows[: window.limit]
    return Page(rows, rows[-1]["id"] if more else None)
