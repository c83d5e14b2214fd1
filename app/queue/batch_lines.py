"""A batch's lines on their way into Postgres: contexts and results in the text form of COPY."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from app.db.tables.contexts import Prompt
from app.queue.columns import PROMPT, SUBMITTED
from app.queue.ticket import Status, Submission

CONTEXT_COLUMNS = ["id", "owner_id", "created_at", *PROMPT.names]
RESULT_COLUMNS = [
    *("batch_id", "batch_line", "available_at", "status", "completed_at", "error_code", "error_message"),
    *SUBMITTED.names,
]


def context_line(ticket: Submission, prompt: Prompt) -> bytes:
    """The context of a line's ticket; a ValueError where it holds a NUL character."""
    return _copied([ticket.context_id, ticket.owner_id, ticket.created_at, *PROMPT.values(prompt)])


def result_line(ticket: Submission, batch_id: UUID, number: int, failed: tuple[str, str] | None = None) -> bytes:
    """The ticket of line `number`; with the code and message of an error it is final already."""
    state: tuple[Any, ...] = (Status.PENDING, None, None, None)
    if failed is not None:
        state = (Status.FAILED, ticket.created_at, *failed)
    return _copied([batch_id, number, ticket.created_at, *state, *SUBMITTED.values(ticket)])


def _copied(values: Iterable[Any]) -> bytes:
    return "\t".join(map(_cell, values)).encode() + b"\n"


def _cell(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, datetime):
        return value.isoformat()
    text = value if isinstance(value, str) else str(value)
    if "\x00" in text:
        raise ValueError("Postgres holds no text with NUL characters")
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
