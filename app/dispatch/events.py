"""What running generations say, on its way into Postgres: rows of all followed runs together, many to a statement."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from app.dispatch.run import Run
from app.errors import DatabaseUnavailable
from app.queue.bulk import statements_of, write_apart
from app.queue.events import EventStore, Spoken
from app.queue.statements.channels import IDS_PER_NOTIFY
from app.tasks.infer import Responses
from app.tasks.outputs import Output
from app.telemetry import logger
from app.telemetry.metrics import STREAM_EVENTS

log = logger("events")

# Statements begin no more often than this, so that busy streams share them: the more streams, the more share each.
PAUSE_SECONDS = 0.005
PAUSE_SECONDS_PER_STREAM = 0.00075
LONGEST_PAUSE_SECONDS = 0.012
# A run's first rows are written as they come, the later ones at most five times a second.
FREE_ROWS = 2000
SPARE_SECONDS = 0.2
# A crash of Postgres forgets what was committed without waiting for the disk: three wal_writer_delays at most.
FORGETTABLE_SECONDS = 5.0
RETRY_SECONDS = 0.5
LOCKED_SECONDS = 0.03
CONFIRM_TRIES = 5


@dataclass(slots=True)
class _Written:
    """How far one choice is written: parts of its text, characters, tokens with logprobs. Of tensors, responses."""

    parts: int = 0
    characters: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _Tail:
    """One followed run: what of it is written, and the rows that a crash of Postgres might still forget."""

    run: Run
    written: dict[int, _Written] = field(default_factory=dict)
    # The next row's number; the first row of a run is numbered by Postgres, after those of earlier attempts.
    sequence: int | None = None
    rows: int = 0
    due: float = 0.0
    recent: deque[tuple[float, Spoken]] = field(default_factory=deque)
    unsure: bool = False

    def rest(self) -> tuple[list[dict[str, Any]], dict[int, _Written]]:
        """What is not written yet, and how far it goes."""
        if isinstance(self.run.answer, Responses):
            return self._responses(self.run.answer.responses)
        answer, entries, reached = self.run.answer, [], {}
        for index, parts in enumerate(answer.texts):
            done = self.written.get(index) or _Written()
            logprobs = answer.logprobs[index] or []
            if len(parts) == done.parts and len(logprobs) == done.tokens:
                continue
            # Postgres takes no NUL; the settled text has none either.
            text = "".join(parts[done.parts :]).replace("\x00", "\ufffd")
            counts = {"tokens": answer.tokens[index], "prompt_tokens": answer.prompt_tokens}
            entry: dict[str, Any] = {"index": index, "at": done.characters, "text": text, **counts}
            if len(logprobs) > done.tokens:
                entry |= {"token": done.tokens, "logprobs": logprobs[done.tokens :]}
            entries.append(entry)
            reached[index] = _Written(len(parts), done.characters + len(text), len(logprobs))
        return entries, reached

    def _responses(self, responses: Sequence[Sequence[Output]]) -> tuple[list[dict[str, Any]], dict[int, _Written]]:
        done = self.written.get(0) or _Written()
        rest = enumerate(responses[done.parts :], done.parts)
        entries = [output.document(number) for number, outputs in rest for output in outputs]
        return entries, {0: _Written(len(responses))} if entries else {}


@dataclass(slots=True)
class _Piece:
    """What is to be stored of one run now: rows that may be forgotten, then a new one that goes as far as `reached`."""

    tail: _Tail
    rows: list[Spoken]
    reached: dict[int, _Written]

    @property
    def size(self) -> int:
        return sum(len(row.choices) for row in self.rows)


def _piece_of(tail: _Tail) -> _Piece:
    rows = [row for _, row in tail.recent] if tail.unsure else []
    entries, reached = tail.rest()
    if entries:
        claim = tail.run.claim
        rows.append(Spoken(claim.id, claim.token, tail.sequence, to_json(entries, inf_nan_mode="null").decode()))
    return _Piece(tail, rows, reached)


class EventWriter:
    """Collects while a statement is under way, as the outbox does; runs that nobody follows never come here.

    Memory is bounded by what the runs hold anyway: a row is made when it is written, so while Postgres is away
    nothing piles up.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._tails: dict[UUID, _Tail] = {}
        self._moved: set[UUID] = set()
        self._wake = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None

    def moved(self, run: Run) -> None:
        """A followed run has said something, or has a follower now."""
        self._moved.add(run.claim.token)
        if run.claim.token not in self._tails:
            self._tails[run.claim.token] = _Tail(run)
        self._wake.set()

    def ended(self, tokens: Iterable[UUID]) -> None:
        """These runs are over: the settled result has the rest of their text."""
        for token in tokens:
            self._moved.discard(token)
            self._tails.pop(token, None)

    async def run(self) -> None:
        """Runs until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._wake.wait()
            self._wake.clear()
            started = clock()
            later = await self._flush(started)
            pause = min(max(PAUSE_SECONDS, len(self._tails) * PAUSE_SECONDS_PER_STREAM), LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(max(0.0, started + pause - clock()))
            if self._later is not None:
                self._later.cancel()
            self._later = None if later is None else asyncio.get_running_loop().call_at(later, self._wake.set)

    async def _flush(self, now: float) -> float | None:
        """Writes what is due; returns when the next row is, where one has to wait."""
        tails = [self._tails[token] for token in self._moved]
        due = [tail for tail in tails if tail.due <= now]
        self._moved = {tail.run.claim.token for tail in tails if tail.due > now}
        pieces = (piece for tail in due if (piece := _piece_of(tail)).rows)
        for batch in statements_of(pieces, IDS_PER_NOTIFY, lambda piece: piece.size):
            await write_apart(batch, partial(self._write, now), self._refused)
        return min((self._tails[token].due for token in self._moved), default=None)

    async def _write(self, now: float, pieces: Sequence[_Piece]) -> None:
        try:
            done = await self._store.write([row for piece in pieces for row in piece.rows])
        except DatabaseUnavailable:
            log.warning("postgres is away, streams wait", streams=len(pieces))
            # It may have been stored and read: under its number, nothing else may be stored later.
            for piece in pieces:
                if piece.tail.run.claim.token in self._tails and piece.rows[-1].sequence is not None:
                    self._note(piece, None, now)
            self.doubt()
            await asyncio.sleep(RETRY_SECONDS)
            return
        for piece in pieces:
            token = piece.tail.run.claim.token
            if token not in self._tails:
                continue
            if token in done:
                self._note(piece, done[token], now)
            else:
                # Locked by a renewal at the moment, or no longer ours: then the run is about to be stopped.
                piece.tail.due = now + LOCKED_SECONDS
                self._again(piece.tail)

    async def _refused(self, piece: _Piece, error: Exception) -> None:
        """Its text comes with the settle."""
        run = piece.tail.run
        log.error("postgres refused an event", result=run.claim.id, error=repr(error))
        run.streamed = False
        self.ended([run.claim.token])

    def _note(self, piece: _Piece, sequence: int | None, now: float) -> None:
        tail, row = piece.tail, piece.rows[-1]
        tail.unsure = False
        if not piece.reached:
            return
        number = sequence if row.sequence is None else row.sequence
        assert number is not None, "a row without a number of its own gets one that is free"
        row = Spoken(row.id, row.token, number, row.choices)
        tail.sequence = number + 1
        tail.written |= piece.reached
        tail.rows += 1
        STREAM_EVENTS.inc()
        tail.recent.append((now, row))
        while tail.recent[0][0] < now - FORGETTABLE_SECONDS:
            tail.recent.popleft()
        if tail.rows >= FREE_ROWS:
            tail.due = now + SPARE_SECONDS

    async def confirm(self, tokens: Iterable[UUID]) -> None:
        """Before these runs end: stores what a crash of Postgres forgot of their rows, for nothing can be added later.

        The last commits are forgotten first, so where the last row is, all are.

        Raises:
            DatabaseUnavailable: it is not certain.
        """
        tails = [tail for token in tokens if (tail := self._tails.get(token)) and tail.sequence is not None]
        if not tails:
            return
        last = await self._store.last([tail.run.claim.id for tail in tails])
        short = [tail for tail in tails if tail.sequence is not None and last[tail.run.claim.id] < tail.sequence - 1]
        for _ in range(CONFIRM_TRIES):
            if not short:
                return
            done: dict[UUID, int | None] = {}
            rows = [row for tail in short for _, row in tail.recent]
            for batch in statements_of(rows, len(rows), lambda row: len(row.choices)):
                done |= await self._store.write(batch)
            short = [tail for tail in short if tail.run.claim.token not in done]
            if short:
                # Locked at the moment, or another's by now.
                await asyncio.sleep(LOCKED_SECONDS)

    def _again(self, tail: _Tail) -> None:
        self._moved.add(tail.run.claim.token)
        self._wake.set()

    def doubt(self) -> None:
        """Postgres was away and may have crashed: what was written last is written again, where it is missing."""
        for tail in self._tails.values():
            tail.unsure = True
            self._again(tail)
