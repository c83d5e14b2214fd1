"""One result's events as this process has read them, shared by all who follow it here."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from app.queue.events import Stored
from app.services.replay import Addition, Delta, Replay


class Event(NamedTuple):
    """`sequence` is the same for every process and every time it is read."""

    sequence: int
    added: Addition

    @property
    def deltas(self) -> list[Delta]:
        return self.added.deltas


@dataclass(frozen=True, slots=True)
class End:
    """The final result's row; `sequence` is one more than the last event's."""

    sequence: int
    row: Mapping[str, Any]


class Channel:
    """Grows by what is told and read; followers keep their own places in it, so that a slow one costs no memory."""

    def __init__(self, id_: UUID) -> None:
        self.id = id_
        self.followers = 0
        self.events: list[Event] = []
        # Which telling of the text each event belongs to.
        self.tellings: list[int] = []
        self.sequence = -1
        self.end: End | None = None
        self.removed = False
        # Whether it was read to the end once, and when it was read last.
        self.primed = False
        self.looked = 0.0
        self._replay = Replay()
        self._moved = asyncio.Event()

    @property
    def moved(self) -> asyncio.Event:
        """Set at the next change; taken before looking, so that no change is missed in between."""
        return self._moved

    def wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def has(self, sequence: int) -> bool:
        """Whether nothing is to be had from this row."""
        return self.end is not None or sequence <= self.sequence

    def expects(self, sequence: int) -> bool:
        """Whether this row is the next one, of a result whose rows before were all read."""
        return self.primed and sequence == self.sequence + 1

    def append(self, sequence: int, choices: Sequence[Mapping[str, Any]]) -> None:
        """The row that it expects."""
        self._add(sequence, self._replay.add(choices))
        self.wake()

    def take(self, stored: Stored, final: Mapping[str, Any] | None) -> None:
        """What a read found, `final` being the row of a result that has ended."""
        for sequence, choices in stored.rows:
            if sequence <= self.sequence:
                # It was told while the statement was under way.
                continue
            if sequence != self.sequence + 1 and not stored.final:
                # A crash of Postgres forgot one; its dispatcher writes it again.
                break
            self._add(sequence, self._replay.add(choices))
        if stored.final and not stored.more:
            if final is None:
                self.removed = True
            else:
                self.finish(final)
        primed, self.primed = self.primed, self.primed or not stored.more
        if stored.rows or stored.final or primed != self.primed:
            self.wake()

    def finish(self, row: Mapping[str, Any]) -> None:
        """The result is final: what its row has beyond the stored events is the last event."""
        telling = self._replay.telling
        rest = self._replay.end(row)
        if rest or self._replay.telling != telling:
            self._add(self.sequence + 1, rest)
        self.end = End(self.sequence + 1, row)
        self.primed = True

    def _add(self, sequence: int, added: Addition) -> None:
        self.sequence = sequence
        self.events.append(Event(sequence, added))
        self.tellings.append(self._replay.telling)

    def start(self) -> int:
        """Where those begin who have seen nothing: with the current telling."""
        return bisect.bisect_left(self.tellings, self._replay.telling)

    def behind(self, after: int) -> int:
        """Where those go on who have seen the event `after`."""
        return bisect.bisect_right(self.events, after, key=lambda event: event.sequence)
