"""What running generations say, on its way into Postgres: rows of all followed runs together, many to a statement."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from uuid import UUID

import asyncpg
from pydantic_core import to_json

from app.dispatch.run import Run
from app.errors import DatabaseUnavailable
from app.queue.events import EventStore, Spoken
from app.queue.statements import IDS_PER_NOTIFY
from app.telemetry import STREAM_EVENTS, logger

log = logger("events")

# Statements begin no more often than this, so that busy streams share them.
PAUSE_SECONDS = 0.005
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
    """How far one choice is written: parts of its text, characters, tokens with logprobs."""

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
        answer, entries, reached = self.run.answer, [], {}
        for index, parts in enumerate(answer.texts):
            done = self.written.get(index) or _Written()
            logprobs = answer.logprobs[index] or []
            if len(parts) == done.parts and len(logprobs) == done.tokens:
                continue
            # Postgres takes no NUL; the settled text has none either.
            text = "".join(islice(parts, done.parts, None)).replace("\x00", "\ufffd")
            entry: dict[str, Any] = {"index": index, "at": done.characters, "text": text}
            if len(logprobs) > done.tokens:
                entry |= {"token": done.tokens, "logprobs": logprobs[done.tokens :]}
            entries.append(entry)
            reached[index] = _Written(len(parts), done.characters + len(text), len(logprobs))
        return entries, reached


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
            await asyncio.sleep(max(0.0, started + PAUSE_SECONDS - clock()))
            if self._later is not None:
                self._later.cancel()
            self._later = None if later is None else asyncio.get_running_loop().call_at(later, self._wake.set)

    async def _flush(self, now: float) -> float | None:
        """Writes what is due; returns when the next row is, where one has to wait."""
        tails = [self._tails[token] for token in self._moved]
        due = [tail for tail in tails if tail.due <= now]
        self._moved = {tail.run.claim.token for tail in tails if tail.due > now}
        for start in range(0, len(due), IDS_PER_NOTIFY):
            await self._write(due[start : start + IDS_PER_NOTIFY], now)
        return min((self._tails[token].due for token in self._moved), default=None)

    async def _write(self, tails: Sequence[_Tail], now: float) -> None:
        reached: dict[UUID, dict[int, _Written]] = {}
        rows: list[Spoken] = []
        for tail in tails:
            claim = tail.run.claim
            if tail.unsure:
                rows.extend(row for _, row in tail.recent)
            entries, reached[claim.token] = tail.rest()
            if entries:
                rows.append(
                    Spoken(claim.id, claim.token, tail.sequence, to_json(entries, inf_nan_mode="null").decode())
                )
        if not rows:
            return
        try:
            done = await self._store.write(rows)
        except DatabaseUnavailable:
            log.warning("postgres is away, streams wait", streams=len(tails))
            # It may have been stored and read: under its number, nothing else may be stored later.
            rows_of = {row.token: row for row in rows if row.sequence is not None}
            for tail in tails:
                token = tail.run.claim.token
                if token in self._tails:
                    self._note(tail, rows_of.get(token), None, reached[token], now)
            self.doubt()
            await asyncio.sleep(RETRY_SECONDS)
            return
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            # One row that Postgres refuses must not hold up the others; its text comes with the settle.
            if len(tails) > 1:
                middle = len(tails) // 2
                await self._write(tails[:middle], now)
                await self._write(tails[middle:], now)
                return
            log.error("postgres refused an event", result=tails[0].run.claim.id, error=str(error))
            tails[0].run.streamed = False
            self.ended([tails[0].run.claim.token])
            return
        by_token = {row.token: row for row in rows}
        for tail in tails:
            token = tail.run.claim.token
            if token not in self._tails:
                continue
            if token in done:
                self._note(tail, by_token.get(token), done[token], reached[token], now)
            elif token in by_token:
                # Locked by a renewal at the moment, or no longer ours: then the run is about to be stopped.
                tail.due = now + LOCKED_SECONDS
                self._again(tail)

    def _note(
        self, tail: _Tail, row: Spoken | None, sequence: int | None, reached: dict[int, _Written], now: float
    ) -> None:
        tail.unsure = False
        if not reached or row is None:
            return
        number = sequence if row.sequence is None else row.sequence
        assert number is not None, "a row without a number of its own gets one that is free"
        row = Spoken(row.id, row.token, number, row.choices)
        tail.sequence = number + 1
        tail.written |= reached
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
            done = await self._store.write([row for tail in short for _, row in tail.recent])
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
