"""Following a generation while it runs, from any API process, and going on where a cut stream ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from app.config import Settings
from app.db.engine import Database
from app.errors import DatabaseUnavailable, InvalidRequest, ResultNotFound, StreamExpired, StreamRestarted
from app.queue.bulk import statements_of
from app.queue.columns import RESULT, STORED_BYTES
from app.queue.events import EventStore, Stored, rows_told
from app.services.callers import Caller
from app.services.channels import Channel, End, Event
from app.services.pages import SLICE_BYTES
from app.services.replay import Delta
from app.services.results import Results
from app.telemetry import logger
from app.telemetry.metrics import STREAM_FOLLOWERS

__all__ = ["Delta", "End", "Event", "Following", "Streams"]

log = logger("streams")

RESULTS_PER_READ = 200
# NOTIFY brings news at once; where one was lost, looking this often does, in seconds.
LOOK_AGAIN_SECONDS = 1.0
RETRY_SECONDS = 0.5
PATIENCE_SECONDS = 5.0
FINAL_SIZES = f"SELECT id, {STORED_BYTES} AS bytes FROM results WHERE id = ANY ($1::uuid[])"  # noqa: S608
FINAL_ROWS = f"SELECT {RESULT} FROM results WHERE id = ANY ($1::uuid[])"  # noqa: S608


class Streams:
    """The events of all results that are followed in this process: as notifications tell them, or read.

    One statement reads what is missing of many.
    """

    def __init__(self, database: Database, results: Results, settings: Settings) -> None:
        self._database = database
        self._store = EventStore(database)
        self._results = results
        self._kept_seconds = settings.stream_retention_seconds
        self._channels: dict[UUID, Channel] = {}
        self._due: set[UUID] = set()
        self._wake = asyncio.Event()
        self.closed = False

    async def open(self, caller: Caller, result_id: UUID, after: int | None = None) -> Following:
        """Has the result's events stored from now on, if they are not yet.

        Raises:
            ResultNotFound: no such result.
            StreamExpired: its events were removed, and `after` names one of them.
            InvalidRequest: it is final and never had an event `after`.
        """
        expired = await self._store.follow(result_id, caller.owner_id, self._kept_seconds)
        if expired is None:
            await self._results.get(caller, result_id)
            raise ResultNotFound(f"No result has the id {result_id}. GET /results/ lists those there are.")
        following = Following(self, self._results, caller, Channel(result_id), after)
        if expired:
            if after is not None:
                raise StreamExpired(
                    f"The events of result {result_id} were removed {self._kept_seconds:g} seconds after its end: "
                    "read the result itself, or follow it from the start."
                )
            following.channel.finish(await self._results.get(caller, result_id))
        elif after is not None:
            await following.check(after)
        return following

    def announced(self, payload: str) -> None:
        """Takes the payload of a notification: ids with commas, or nothing for 'look for yourselves'."""
        if self._channels:
            ids = [UUID(text) for text in payload.split(",")] if payload else list(self._channels)
            self._look(id_ for id_ in ids if id_ in self._channels)

    def rows_announced(self, payload: str) -> None:
        """Takes what a notification tells of new rows, or nothing for 'look for yourselves'.

        Where a row is not told or is not the next one, what is there is read.
        """
        if not payload:
            self.announced("")
        elif self._channels:
            now = asyncio.get_running_loop().time()
            for id_, sequence, choices in rows_told(payload):
                channel = self._channels.get(id_)
                if channel is None or channel.has(sequence):
                    continue
                if choices is not None and channel.expects(sequence):
                    channel.append(sequence, from_json(choices))
                    channel.looked = now
                else:
                    self._look([id_])

    def close(self) -> None:
        """The process stops: streams end where they are, and their clients go on elsewhere."""
        self.closed = True
        for channel in self._channels.values():
            channel.wake()

    @contextmanager
    def watching(self, channel: Channel) -> Iterator[Channel]:
        """Keeps a channel read; where the result has one already, that one is given."""
        known = channel.id in self._channels
        channel = self._channels.setdefault(channel.id, channel)
        channel.followers += 1
        STREAM_FOLLOWERS.inc()
        if not known or not channel.primed:
            self._look([channel.id])
        try:
            yield channel
        finally:
            STREAM_FOLLOWERS.dec()
            channel.followers -= 1
            if not channel.followers:
                del self._channels[channel.id]

    async def run(self) -> None:
        """Reads for all followers, until cancelled; what moves while a statement is under way shares the next."""
        clock = asyncio.get_running_loop().time
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            now = clock()
            due, self._due = self._due, set()
            channels = [
                channel
                for id_, channel in self._channels.items()
                if channel.end is None and (id_ in due or channel.looked < now - LOOK_AGAIN_SECONDS)
            ]
            for start in range(0, len(channels), RESULTS_PER_READ):
                await self._read(channels[start : start + RESULTS_PER_READ], now)

    async def _read(self, channels: list[Channel], now: float) -> None:
        try:
            found = await self._store.read([(channel.id, channel.sequence) for channel in channels])
            sizes = await self._final_sizes([stored.id for stored in found if stored.final and not stored.more])
            by_id = {channel.id: channel for channel in channels}
            self._take([stored for stored in found if stored.id not in sizes], by_id, {}, now)
            ended = [stored for stored in found if stored.id in sizes]
            for part in statements_of(ended, RESULTS_PER_READ, lambda stored: sizes[stored.id], SLICE_BYTES):
                self._take(part, by_id, await self._final_rows([stored.id for stored in part]), now)
        except DatabaseUnavailable:
            log.warning("postgres is away, streams wait", streams=len(channels))
            await asyncio.sleep(RETRY_SECONDS)
            self._look(channel.id for channel in channels if channel.end is None)

    def _take(
        self,
        found: Sequence[Stored],
        channels: Mapping[UUID, Channel],
        rows: Mapping[UUID, Mapping[str, Any]],
        now: float,
    ) -> None:
        for stored in found:
            channel = channels[stored.id]
            channel.looked, before = now, channel.sequence
            channel.take(stored, rows.get(stored.id))
            # A row that cannot be taken yet is not asked for again at once; one that had no room in the read is.
            if stored.more and (channel.sequence > before or not stored.rows):
                self._look([stored.id])

    async def _final_sizes(self, ids: list[UUID]) -> dict[UUID, int]:
        """Bytes as they are stored, of those that are there."""
        if not ids:
            return {}
        async with self._database.hot() as connection:
            return {row["id"]: row["bytes"] for row in await connection.fetch(FINAL_SIZES, ids)}

    async def _final_rows(self, ids: list[UUID]) -> dict[UUID, Mapping[str, Any]]:
        async with self._database.hot() as connection:
            return {row["id"]: row for row in await connection.fetch(FINAL_ROWS, ids)}

    def _look(self, ids: Iterable[UUID]) -> None:
        self._due.update(ids)
        if self._due:
            self._wake.set()


class Following:
    """One follower: the events after its cursor, or all of them."""

    def __init__(self, streams: Streams, results: Results, caller: Caller, channel: Channel, after: int | None) -> None:
        self._streams = streams
        self._results = results
        self._caller = caller
        self.channel = channel
        self._after = after

    @property
    def exhausted(self) -> bool:
        """Whether the follower's cursor is the End itself."""
        return self.channel.end is not None and self._after == self.channel.end.sequence

    async def check(self, after: int) -> None:
        """Raises InvalidRequest where the result is final and never had an event `after`."""
        with self._streams.watching(self.channel) as self.channel:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while not (self.channel.primed or self._streams.closed):
                        await self.channel.moved.wait()
            except TimeoutError:
                raise DatabaseUnavailable(stored_nothing=True) from None
        if self.channel.end is not None and after > self.channel.end.sequence:
            message = f"this result ended with event {self.channel.end.sequence}"
            raise InvalidRequest(f"starting_after: {message}", errors=[{"field": "starting_after", "message": message}])

    async def events(self) -> AsyncGenerator[Event | End]:
        """What comes after the cursor, then the End; it stops without one when this process does.

        Without a cursor it begins with the text as the current attempt tells it.

        Raises:
            StreamRestarted: a later attempt says something else than what this follower was sent.
            ResultNotFound: the result was removed meanwhile.
        """
        after, index, telling = self._after, 0, None
        with self._streams.watching(self.channel) as channel:
            while not self._streams.closed:
                moved = channel.moved
                if after is not None and (channel.end is not None or channel.sequence >= after):
                    index, after = channel.behind(after), None
                    telling = channel.tellings[index - 1] if index else None
                # Not before all that was stored is read: only then is it known which telling is the current one.
                if after is None and channel.primed:
                    index = channel.start() if telling is None else index
                    while index < len(channel.events):
                        event, told = channel.events[index], channel.tellings[index]
                        if telling is not None and told != telling:
                            raise StreamRestarted(
                                f"Another attempt at result {channel.id} says something else than what was sent so "
                                "far: drop that text, and read the result or follow it from the start."
                            )
                        index += 1
                        if event.added:
                            telling = told
                            yield event
                    if channel.end is not None:
                        yield channel.end
                        return
                if channel.removed:
                    await self._results.get(self._caller, channel.id)
                    return
                await moved.wait()
