"""Following all results of a comparison at once, and going on where a cut stream ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from app.errors import InvalidRequest, NotFound, Removed, StreamExpired, StreamRestarted, invalid
from app.services.callers import Caller
from app.services.merging import merged
from app.services.streams import End, Event, Following, Streams


class Signal(Enum):
    # What was sent of the result is void: it begins anew.
    RESTARTED = "restarted"
    # The result was removed on its own.
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a follower is with one result: `after` is the last sequence it has, None for nothing yet."""

    after: int | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What comes next, of the result at `place` in the order of the request."""

    place: int
    item: Event | End | Signal


@dataclass(frozen=True, slots=True)
class _Opened:
    following: Following | None
    restarted: bool = False


class ComparisonStream:
    """One follower of several results."""

    def __init__(self, streams: Streams, caller: Caller, result_ids: Sequence[UUID]) -> None:
        self._streams = streams
        self._caller = caller
        self._ids = result_ids
        self._opened: dict[int, _Opened] = {}

    @property
    def exhausted(self) -> bool:
        """Whether the follower has seen the end of every result."""
        return not self._opened

    async def open(self, positions: Sequence[Position]) -> None:
        """Has the events of all results stored from now on, where the follower has not seen the end.

        Raises:
            InvalidRequest: a result never had the event that a position names.
        """
        for place, (id_, position) in enumerate(zip(self._ids, positions, strict=True)):
            if not position.ended:
                self._opened[place] = await self._open(id_, position.after)

    async def _open(self, id_: UUID, after: int | None) -> _Opened:
        try:
            return _Opened(await self._streams.open(self._caller, id_, after))
        except StreamExpired:
            # The text of the final result is there still, as one event.
            return _Opened(await self._streams.open(self._caller, id_), restarted=True)
        except InvalidRequest as error:
            raise invalid("Last-Event-ID", f"of result {id_}: {error.detail}") from None
        except (NotFound, Removed):
            return _Opened(None)

    async def parts(self) -> AsyncGenerator[Part]:
        """What comes after the positions, until all results have ended, or this process stops."""
        async with aclosing(merged([self._follow(*each) for each in self._opened.items()])) as parts:
            async for part in parts:
                yield part

    async def _follow(self, place: int, opened: _Opened) -> AsyncGenerator[Part]:
        """The parts of one result."""
        following = opened.following
        if following is None:
            yield Part(place, Signal.REMOVED)
        elif opened.restarted:
            yield Part(place, Signal.RESTARTED)
        try:
            while following is not None:
                try:
                    async with aclosing(following.events()) as events:
                        async for item in events:
                            yield Part(place, item)
                    following = None
                except StreamRestarted:
                    yield Part(place, Signal.RESTARTED)
                    following = await self._streams.open(self._caller, self._ids[place])
        except (NotFound, Removed):
            yield Part(place, Signal.REMOVED)
