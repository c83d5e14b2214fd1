"""SQLAlchemy's statements, run by asyncpg: composed there, sent as text and parameters."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.sql.elements import ClauseElement

_DIALECT = dialect()  # type: ignore[no-untyped-call]


def compiled(statement: ClauseElement) -> tuple[str, list[Any]]:
    """The text with $1, $2, ... and the values for them, as asyncpg takes them."""
    # The driver's codecs encode the values, so SQLAlchemy's own conversions stay out.
    query = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    values = query.params
    return query.string, [values[name] for name in query.positiontup or ()]  # type: ignore[attr-defined]


class Queries:
    """One connection, in a transaction, that takes composed statements."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def rows(self, statement: ClauseElement) -> list[dict[str, Any]]:
        text, values = compiled(statement)
        return [dict(row) for row in await self._connection.fetch(text, *values)]

    async def row(self, statement: ClauseElement) -> dict[str, Any] | None:
        """The first row, or None."""
        text, values = compiled(statement)
        row = await self._connection.fetchrow(text, *values)
        return None if row is None else dict(row)

    async def value(self, statement: ClauseElement) -> Any:
        """The first column of the first row; None where there is no row."""
        text, values = compiled(statement)
        return await self._connection.fetchval(text, *values)

    async def execute(self, statement: ClauseElement) -> None:
        text, values = compiled(statement)
        await self._connection.execute(text, *values)
