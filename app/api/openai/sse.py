"""Server-sent events as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from pydantic_core import to_json

from app.api.openai.failures import failure_of
from app.api.problems import openai_error
from app.api.sse import never_gone
from app.errors import AppError
from app.queue.ticket import Status
from app.services.streams import Delta, End, Event, Following

DONE = b"data: [DONE]\n\n"


class Chunks(Protocol):
    """Makes the chunks of one stream."""

    def start(self) -> list[dict[str, Any]]: ...

    def delta(self, delta: Delta) -> list[dict[str, Any]]: ...

    def end(self, row: Mapping[str, Any]) -> list[dict[str, Any]]: ...


async def stream_events(following: Following, chunks: Chunks, kind: str, stopping: AppError) -> AsyncGenerator[bytes]:
    """The chunks of a result; `id` lines carry the sequence, so that a cut stream goes on after the last one."""
    if following.exhausted:
        yield DONE
        return
    try:
        yield _lines(chunks.start(), None)
        async with aclosing(following.events(never_gone)) as items:
            async for item in items:
                if isinstance(item, Event):
                    made = [chunk for delta in item.deltas for chunk in chunks.delta(delta)]
                    if made:
                        yield _lines(made, item.sequence)
                    continue
                assert isinstance(item, End)
                if item.row["status"] == Status.FAILED:
                    raise failure_of(item.row, kind)
                yield _lines(chunks.end(item.row), item.sequence) + DONE
                return
        raise stopping
    except AppError as error:
        yield _data({"error": openai_error(error)}) + DONE


def _lines(chunks: list[dict[str, Any]], sequence: int | None) -> bytes:
    parts = [_data(chunk) for chunk in chunks]
    if parts and sequence is not None:
        # On the last chunk of an event alone: whoever has it has all of them.
        parts[-1] = b"id: %d\n%b" % (sequence, parts[-1])
    return b"".join(parts)


def _data(document: dict[str, Any]) -> bytes:
    return b"data: " + to_json(document) + b"\n\n"
