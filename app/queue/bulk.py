"""Many rows in one statement: no more of them than it can carry, and one that Postgres refuses takes no other along."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from app.errors import DatabaseUnavailable

# Far below the 256 MB of a jsonb and the 1 GB of a message, and what a process holds beside the rows themselves.
MAX_STATEMENT_BYTES = 32 * 1024 * 1024

Row = TypeVar("Row")


def statements_of(
    rows: Iterable[Row], most: int, size: Callable[[Row], int], most_bytes: int | None = None
) -> Iterator[list[Row]]:
    """Lists of at most `most` rows and `most_bytes` by `size`, in order; a row above that is alone.

    `most_bytes` is MAX_STATEMENT_BYTES where it is not given.
    """
    bound = MAX_STATEMENT_BYTES if most_bytes is None else most_bytes
    chunk: list[Row] = []
    total = 0
    for row in rows:
        its = size(row)
        if chunk and (len(chunk) == most or total + its > bound):
            yield chunk
            chunk, total = [], 0
        chunk.append(row)
        total += its
    if chunk:
        yield chunk


async def write_apart(
    rows: Sequence[Row],
    write: Callable[[Sequence[Row]], Awaitable[None]],
    refused: Callable[[Row, Exception], Awaitable[None]],
) -> None:
    """Writes the rows by one statement; a refused one is halved until the bad row is alone, and `refused` is told it.

    `write` stores all or nothing. A DatabaseUnavailable that it raises is raised from here, at once.
    """
    try:
        await write(rows)
    except DatabaseUnavailable:
        raise
    except Exception as error:
        if len(rows) == 1:
            await refused(rows[0], error)
            return
        middle = len(rows) // 2
        await write_apart(rows[:middle], write, refused)
        await write_apart(rows[middle:], write, refused)
