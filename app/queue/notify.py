"""One LISTEN connection a process, which reconnects, and a fan-out to whoever waits here.

NOTIFY only wakes: whoever is woken reads the tables, and whoever waits also looks by itself now and then. Rows of
streams go along as a copy of what the table has, which spares the read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from app.database_url import ConnectArguments
from app.db.connect import Connector
from app.db.faults import diagnose, is_unavailable
from app.telemetry import logger
from app.telemetry.metrics import LISTENING

log = logger("notify")

RECONNECT_FIRST_SECONDS = 0.2
RECONNECT_LONGEST_SECONDS = 5.0
CHECK_SECONDS = 5.0


class Listener:
    """Keeps one connection listening and calls back with each payload.

    After every (re)connection each callback gets an empty payload: something may have been missed.
    """

    def __init__(self, arguments: ConnectArguments, callbacks: dict[str, Callable[[str], None]]) -> None:
        self._connector = Connector(arguments)
        self._callbacks = callbacks
        self._connected = False

    async def run(self) -> None:
        """Runs until cancelled."""
        delay = RECONNECT_FIRST_SECONDS
        while True:
            try:
                await self._listen()
            except Exception as error:
                if not is_unavailable(error):
                    raise
                log.warning("listening stopped", reason=diagnose(error).sentence, again_in=delay)
            finally:
                was_connected, self._connected = self._connected, False
                LISTENING.set(0)
            delay = RECONNECT_FIRST_SECONDS if was_connected else min(delay * 2, RECONNECT_LONGEST_SECONDS)
            await asyncio.sleep(delay)

    async def _listen(self) -> None:
        connection = await self._connector.open(command_timeout=5)
        try:
            ended = asyncio.Event()
            connection.add_termination_listener(lambda _: ended.set())
            for channel in self._callbacks:
                await connection.add_listener(channel, self._received)
            self._connected = True
            LISTENING.set(1)
            for callback in self._callbacks.values():
                callback("")
            while not ended.is_set():
                # A connection that was cut without a word is noticed by asking.
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS):
                        await ended.wait()
                    break
                await connection.execute("SELECT 1")
            raise ConnectionResetError("the connection that listens was closed")
        finally:
            connection.terminate()

    def _received(self, _connection: Any, _pid: int, channel: str, payload: str) -> None:
        self._callbacks[channel](payload)


def all_of(*callbacks: Callable[[str], None]) -> Callable[[str], None]:
    """One callback for several who listen to the same channel."""

    def call(payload: str) -> None:
        for each in callbacks:
            each(payload)

    return call


class SettledBoard:
    """Wakes those who wait for a result of a given id."""

    def __init__(self) -> None:
        self._waiting: dict[UUID, set[asyncio.Event]] = {}
        self.closed = False

    @contextmanager
    def watching(self, id_: UUID) -> Iterator[asyncio.Event]:
        """An event that is set when the result may have been settled."""
        event = asyncio.Event()
        self._waiting.setdefault(id_, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[id_]
            events.discard(event)
            if not events:
                del self._waiting[id_]

    def received(self, payload: str) -> None:
        """Takes the payload of a notification: ids with commas, or nothing for 'look for yourselves'."""
        if not payload:
            self.wake_all()
            return
        for text in payload.split(","):
            for event in self._waiting.get(UUID(text), ()):
                event.set()

    def close(self) -> None:
        """The process stops: nobody waits any longer."""
        self.closed = True
        self.wake_all()

    def wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()
