"""Server-sent events as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json

from app.errors import AppError, StreamRestarted
from app.openai.answers import Chunks, usage_of
from app.openai.failures import failure_of, openai_error
from app.openai.responses_stream import BEFORE_TEXT, ResponseEvents, sequence_of
from app.queue.ticket import Status
from app.services.merging import merged
from app.services.streams import End, Event, Following

DONE = b"data: [DONE]\n\n"


async def stream_events(
    following: Following, chunks: Chunks, kind: str, after: int | None, stopping: AppError
) -> AsyncGenerator[bytes]:
    """The chunks of a result, those of the events up to `after` left out; nothing before the engine says something.

    `id` lines carry the sequence, so that a cut stream goes on after the last one.

    Raises:
        AppError: what ends the stream before the result's end.
    """
    if following.exhausted:
        yield DONE
        return
    start = _lines(chunks.start() if after is None else [], None)
    first = True
    async with aclosing(following.events()) as items:
        async for item in items:
            if isinstance(item, Event):
                if first and after is not None and item.sequence > after:
                    raise restarted()
                first = False
                made = [chunk for delta in item.deltas for chunk in chunks.delta(delta)]
                if start or (made and (after is None or item.sequence > after)):
                    yield start + _lines(made, item.sequence)
                    start = b""
                continue
            assert isinstance(item, End)
            if item.row["status"] == Status.FAILED:
                raise failure_of(item.row, kind)
            yield start + _lines(chunks.end(item.row), item.sequence) + DONE
            return
    raise stopping


async def several_streams(
    followings: Sequence[Following],
    chunks: Sequence[Chunks],
    kind: str,
    usage: dict[str, Any] | None,
    stopping: AppError,
) -> AsyncGenerator[bytes]:
    """The chunks of several results as one stream, without a sequence to go on from.

    `usage` is the chunk that tells their usage together, None where nobody asks for it.

    Raises:
        AppError: what ends the stream before the end of all.
    """
    rows: list[Mapping[str, Any]] = []

    async def told(following: Following, makes: Chunks) -> AsyncGenerator[bytes]:
        start = _lines(makes.start(), None)
        async with aclosing(following.events()) as items:
            async for item in items:
                if isinstance(item, Event):
                    made = [chunk for delta in item.deltas for chunk in makes.delta(delta)]
                else:
                    if item.row["status"] == Status.FAILED:
                        raise failure_of(item.row, kind)
                    rows.append(item.row)
                    made = makes.end(item.row)
                if made:
                    yield start + _lines(made, None)
                    start = b""
                if isinstance(item, End):
                    return
        raise stopping

    async with aclosing(merged([told(*each) for each in zip(followings, chunks, strict=True)])) as parts:
        async for part in parts:
            yield part
    if usage is not None:
        each = [usage_of(row) for row in rows]
        yield _data(usage | {"usage": {name: sum(one[name] for one in each) for name in each[0]}})
    yield DONE


def error_event(error: AppError) -> bytes:
    """The last of a stream that an error ends."""
    return _data({"error": openai_error(error)}) + DONE


def restarted() -> StreamRestarted:
    return StreamRestarted(
        "Another attempt at this answer says something else than what was sent so far: drop that text, and follow it "
        "from the start."
    )


def _lines(chunks: list[dict[str, Any]], sequence: int | None) -> bytes:
    parts = [_data(chunk) for chunk in chunks]
    if parts and sequence is not None:
        # On the last chunk of an event alone: whoever has it has all of them.
        parts[-1] = b"id: %d\n%b" % (sequence, parts[-1])
    return b"".join(parts)


def _data(document: dict[str, Any]) -> bytes:
    return b"data: " + to_json(document) + b"\n\n"


async def response_events(
    following: Following, events: ResponseEvents, after: int | None, stopping: AppError
) -> AsyncGenerator[bytes]:
    """What comes after the number `after`; an error carries the last number that was sent, to go on from."""
    last = -1 if after is None else after
    try:
        for number, document in events.start():
            if number > last:
                last = number
                yield _numbered(number, document)
        first = True
        async with aclosing(following.events()) as items:
            async for item in items:
                if isinstance(item, Event):
                    if first and last >= BEFORE_TEXT and item.sequence > sequence_of(last):
                        # All that was sent up to `last` belongs to an earlier telling.
                        raise restarted()
                    made = events.event(item)
                else:
                    made = events.end(item)
                first = False
                for number, document in made:
                    if number > last:
                        last = number
                        yield _numbered(number, document)
                if isinstance(item, End):
                    return
        raise stopping
    except AppError as error:
        told = openai_error(error)
        document = {"type": "error", "code": told["code"], "message": told["message"], "param": told["param"]}
        yield _numbered(last, document)


def _numbered(number: int, document: dict[str, Any]) -> bytes:
    body = to_json(document | {"sequence_number": number})
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (number, document["type"].encode(), body)
