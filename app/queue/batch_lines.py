"""A batch's lines on their way into Postgres: contexts and results in the text form of COPY."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Self
from uuid import UUID

from app.db.tables.contexts import Prompt
from app.db.tables.owners import NOBODY
from app.db.tables.results import results
from app.queue.columns import PROMPT, SUBMITTED, Columns
from app.queue.ticket import Status, Submission

CONTEXT_COLUMNS = ["id", "owner_id", "created_at", *PROMPT.names]
# The rank depends on the lines before, so it is written last.
RANKLESS = Columns(results.c[name] for name in SUBMITTED.names if name != "rank")
RESULT_COLUMNS = [
    *("batch_id", "batch_line", "available_at", "status", "completed_at", "error_code", "error_message"),
    *RANKLESS.names,
    "rank",
]


PART_BYTES = 512 * 1024


class SpooledLine(NamedTuple):
    """A line, and where its context and its result begin and end in the files."""

    number: int
    model: str
    context: tuple[int, int]
    result: tuple[int, int]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.context[1] - self.context[0] + self.result[1] - self.result[0]


class LineSpool:
    """The lines of a batch, checked and not yet stored, on the disk: all are stored, or none."""

    def __init__(self) -> None:
        self._contexts, self._results = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - see close
        self.lines: list[SpooledLine] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._contexts.close()
        self._results.close()

    def add(self, number: int, model: str, context: bytes, result: bytes) -> None:
        places = []
        for file, data in ((self._contexts, context), (self._results, result)):
            start = file.tell()
            file.write(data)
            places.append((start, start + len(data)))
        self.lines.append(SpooledLine(number, model, *places))

    def contexts(self, lines: Sequence[SpooledLine]) -> AsyncIterator[bytes]:
        """The contexts of lines that follow each other."""
        return _parts(self._contexts, lines[0].context[0], lines[-1].context[1])

    def results(self, lines: Sequence[SpooledLine]) -> AsyncIterator[bytes]:
        """The results of lines that follow each other."""
        return _parts(self._results, lines[0].result[0], lines[-1].result[1])


async def _parts(file: Any, start: int, end: int) -> AsyncIterator[bytes]:
    file.seek(start)
    while start < end:
        part: bytes = file.read(min(PART_BYTES, end - start))
        start += len(part)
        yield part


def context_line(ticket: Submission, prompt: Prompt) -> bytes:
    """The context of a line's ticket; a ValueError where it holds a NUL character."""
    owner_id = ticket.owner_id if ticket.kept else NOBODY
    return _copied([ticket.context_id, owner_id, ticket.created_at, *PROMPT.values(prompt)])


def rankless_line(ticket: Submission, batch_id: UUID, number: int, failed: tuple[str, str] | None = None) -> bytes:
    """As `result_line`, up to the ticket's rank."""
    state: tuple[Any, ...] = (Status.PENDING, None, None, None)
    if failed is not None:
        state = (Status.FAILED, ticket.created_at, *failed)
    return _copied([batch_id, number, ticket.created_at, *state, *RANKLESS.values(ticket)])[:-1] + b"\t"


def result_line(ticket: Submission, batch_id: UUID, number: int, failed: tuple[str, str] | None = None) -> bytes:
    """The ticket of line `number`; with the code and message of an error it is final already."""
    return ranked(rankless_line(ticket, batch_id, number, failed), ticket.rank)


def ranked(line: bytes, rank: datetime) -> bytes:
    """A line of `rankless_line` with its rank."""
    return line + rank.isoformat().encode() + b"\n"


def _copied(values: Iterable[Any]) -> bytes:
    return "\t".join(map(_cell, values)).encode() + b"\n"


def _cell(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        if "\x00" in value:
            raise ValueError("Postgres holds no text with NUL characters")
        return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    # Moments, ids and numbers have nothing to escape.
    return value.isoformat() if isinstance(value, datetime) else str(value)
