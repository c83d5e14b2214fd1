"""Columns declared once, as the attributes of a dataclass: the table has them, and the queue's statements, the COPY of
batches and the readers of rows are made of them.

An attribute is `name: Annotated[type in Python, Column(type in Postgres, ...)]`; the column takes its name.
"""

from dataclasses import fields
from typing import Any, get_args, get_type_hints

from sqlalchemy import Column

# Of a text or a document without a bound: a page of rows ends early where these are long.
LARGE = {"large": True}


def columns_of(declaration: type) -> list[Column[Any]]:
    """The columns of a declaration and of those it inherits from, for the one table that has them."""
    hints = get_type_hints(declaration, include_extras=True)
    columns = []
    for name in names_of(declaration):
        column = next(each for each in get_args(hints[name]) if isinstance(each, Column))
        column.name = column.key = name
        columns.append(column)
    return columns


def names_of(declaration: type) -> list[str]:
    return [field.name for field in fields(declaration)]


def is_large(column: Any) -> bool:
    return bool(column.info.get("large"))
