"""Cursor pages: newest first, by id, which sorts by time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select
from sqlalchemy.sql.schema import Table

from app.db.engine import Database
from app.db.ids import lowest_at


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


async def fetch_page(database: Database, query: Select[Any], table: Table, window: Window) -> Page:
    """Runs `query` over `table` as one page."""
    if window.after is not None:
        query = query.where(table.c.id < window.after)
    # The id holds the millisecond of creation, so its index bounds the scan; created_at is exact.
    if window.created_after is not None:
        query = query.where(table.c.id >= lowest_at(window.created_after), table.c.created_at > window.created_after)
    if window.created_before is not None:
        query = query.where(
            table.c.id < UUID(int=lowest_at(window.created_before).int + (1 << 80)),
            table.c.created_at < window.created_before,
        )
    async with database.reading() as connection:
        found = await connection.execute(query.order_by(table.c.id.desc()).limit(window.limit + 1))
        rows = found.mappings().all()
    more = len(rows) > window.limit
    rows = rows[: window.limit]
    return Page(rows, rows[-1]["id"] if more else None)
