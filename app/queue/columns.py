"""The declared columns of contexts and results, as the queue's statements take and give them.

A statement takes rows as arrays, one for each column. JSON documents and arrays are sent as text and cast when they are
stored, because Postgres has no arrays of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from pydantic_core import to_json
from sqlalchemy import ARRAY, Column, Table
from sqlalchemy.dialects.postgresql import JSONB, dialect

from app.db.tables import contexts, results
from app.db.tables.contexts import Prompt
from app.db.tables.declared import is_large, names_of
from app.db.tables.results import ClaimedColumns, SettledColumns, SubmittedColumns

_DIALECT = dialect()  # type: ignore[no-untyped-call]


class Columns:
    """Some columns of a table, whose values are the attributes of an object."""

    def __init__(self, columns: Iterable[Column[Any]]) -> None:
        self._columns = tuple(columns)
        self.names = tuple(column.name for column in self._columns)
        self._get: Callable[[Any], Sequence[Any]] = attrgetter(*self.names)
        # Where among the values those of any length are.
        self.large = [n for n, each in enumerate(self._columns) if is_large(each)]
        self._encoders = [(n, encode) for n, each in enumerate(self._columns) if (encode := _encoder(each))]

    def __str__(self) -> str:
        """The names, as SQL lists them."""
        return ", ".join(self.names)

    def of(self, alias: str) -> str:
        """The names, with the alias of their table."""
        return ", ".join(f"{alias}.{name}" for name in self.names)

    @property
    def sent(self) -> list[tuple[str, str]]:
        """Each name, with the type its value is sent as."""
        return [(each.name, "text" if _encoder(each) else sql_type(each)) for each in self._columns]

    @property
    def stored(self) -> str:
        """What was sent, as it is stored."""
        return ", ".join(each.name + _cast(each) for each in self._columns)

    def assigned(self, alias: str) -> str:
        """What was sent as columns of `alias`, as an UPDATE sets it."""
        return ", ".join(f"{each.name} = {alias}.{each.name}{_cast(each)}" for each in self._columns)

    def attributes(self, row: Any) -> dict[str, Any]:
        """The values by their names, as they are."""
        return dict(zip(self.names, self._get(row), strict=True))

    def values(self, row: Any) -> list[Any]:
        """The values, as they are sent."""
        values = list(self._get(row))
        for place, encode in self._encoders:
            if values[place] is not None:
                values[place] = encode(values[place])
        return values


def sql_type(column: Column[Any]) -> str:
    return str(column.type.compile(dialect=_DIALECT)).lower()


def _cast(column: Column[Any]) -> str:
    return f"::{sql_type(column)}" if _encoder(column) else ""


def unnested(sent: Sequence[tuple[str, str]], alias: str, after: int = 0) -> str:
    """The parameters of a statement behind the first `after`, each an array, as rows."""
    arrays = ", ".join(f"${n}::{type_}[]" for n, (_, type_) in enumerate(sent, after + 1))
    return f"unnest({arrays}) AS {alias}({', '.join(name for name, _ in sent)})"


def _encoder(column: Column[Any]) -> Callable[[Any], str] | None:
    if isinstance(column.type, JSONB):
        return _document
    return _array if isinstance(column.type, ARRAY) else None


def _document(value: Any) -> str:
    return to_json(value, inf_nan_mode="null").decode()


def _array(values: Sequence[Any]) -> str:
    """Postgres's literal of an array of texts or numbers."""
    quoted = (str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


def _declared(table: Table, declaration: type) -> Columns:
    return Columns(table.c[name] for name in names_of(declaration))


PROMPT = _declared(contexts, Prompt)
# What the engine is asked: what a claim has of its context.
ASKED = Columns(contexts.c[name] for name in PROMPT.names if name != "metadata")
CLAIMED = _declared(results, ClaimedColumns)
SUBMITTED = _declared(results, SubmittedColumns)
SETTLED = _declared(results, SettledColumns)
# What a reader of results gets: all there is.
RESULT = ", ".join(results.c.keys())
# What a row of results holds, documents compressed: known without reading it.
STORED_BYTES = "({})::int".format(
    " + ".join(
        f"coalesce({'pg_column_size' if _encoder(each) else 'octet_length'}({each.name}), 0)"
        for each in results.c
        if is_large(each)
    )
)
