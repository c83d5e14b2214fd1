"""One server as this process sees it, and its lanes: a model on it each."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from uuid import UUID

from prometheus_client import Gauge

from app.engines.base import Disposition, Engine, EngineError, ModelState
from app.fleet.listing import ACTIVE
from app.fleet.servers import ServerEntry
from app.fleet.shares import Shares
from app.fleet.turnover import Turnover
from app.telemetry.metrics import IN_FLIGHT


@dataclass(eq=False)
class Lane:
    """One model on one server: what is in flight there and whether it moves.

    `moved_at` is when it gave its last sign of life, or when it got work after it had none; `signs` counts the first.
    `tried_at` is that, or when it was last tested. `streams` is how many of its generations show how they go on.
    `quarantine` is why it is set aside; `dead` says that more is known than its silence. `try_again` ends a pause
    between two trials.
    """

    server: Server
    model: str
    in_flight: int = 0
    streams: int = 0
    turnover: Turnover = field(default_factory=Turnover)
    moved_at: float = field(default_factory=time.monotonic)
    tried_at: float = field(default_factory=time.monotonic)
    signs: int = 0
    cool_until: float = 0.0
    suspect: bool = False
    quarantine: str = ""
    # Tickets that have a slot here and would use more: each starts another choice and says whether it has yet more.
    waiting: deque[Callable[[], bool]] = field(default_factory=deque)
    dead: bool = False
    # For how many slots there are rows in Postgres.
    slots_made: int = 0
    try_again: asyncio.Event = field(default_factory=asyncio.Event)

    @cached_property
    def in_flight_gauge(self) -> Gauge:
        return IN_FLIGHT.labels(self.server.url, self.model)

    @property
    def open(self) -> bool:
        """Whether requests may go here."""
        state = self.server.models.get(self.model)
        return (
            self.server.up
            and self.server.listed
            and self.server.wanted == ACTIVE
            and not self.quarantine
            and self.cool_until <= time.monotonic()
            and state is not None
            and state.state == "ready"
        )

    def needs_sign(self, slots: int) -> bool:
        """Whether the next generation is to be streamed although nobody follows it: of those under way none is.

        Its messages tell a busy engine, where a trial waits its turn, from one that hangs. One that runs alone leaves
        room for a trial, where the engine has more `slots`.
        """
        return not self.streams and (self.in_flight > 1 or slots == 1)

    def moved(self) -> None:
        """The engine gave a sign of life."""
        self.signs += 1
        self.begin()

    def begin(self) -> None:
        """Its silence counts from now on."""
        self.moved_at = self.tried_at = time.monotonic()


@dataclass(eq=False)
class Server:
    """One server as this process sees it; no longer `listed`, it only ends what it has in flight.

    `since` is when it came up or went down, as far as this process saw it; `row_id` is that of its row, if it has one,
    `host_id` that of a rented host.
    """

    entry: ServerEntry
    connection: Engine | None
    row_id: UUID | None = None
    host_id: UUID | None = None
    listed: bool = True
    wanted: str = ACTIVE
    since: datetime | None = None
    up: bool = False
    reason: str = "not asked yet"
    models: dict[str, ModelState] = field(default_factory=dict)
    lanes: dict[str, Lane] = field(default_factory=dict)
    shares: Shares = field(default_factory=Shares)
    # What the engine was made for, and engines of before that still have requests in flight.
    made_for: object = None
    _outdated: list[Engine] = field(default_factory=list)
    _held: int = 0

    @property
    def url(self) -> str:
        """Its address, which tells it from all others."""
        return self.entry.url

    @property
    def name(self) -> str | None:
        return self.entry.name

    @property
    def title(self) -> str:
        """What a ticket that wishes for it calls it."""
        return self.entry.name or self.entry.url

    @property
    def hourly_price(self) -> float | None:
        """In dollars."""
        return self.entry.hourly_price

    @property
    def price_rank(self) -> tuple[float, float]:
        """Less is cheaper: by the hour, and for a prompt token and a completion token together."""
        entry = self.entry
        return entry.hourly_price or 0.0, (entry.prompt_token_price or 0.0) + (entry.completion_token_price or 0.0)

    @property
    def engine(self) -> Engine:
        """Raises EngineError when the server has left the fleet."""
        if self.connection is None:
            raise EngineError("server_unreachable", "The server has left the fleet.", Disposition.WAIT)
        return self.connection

    @contextmanager
    def held(self) -> Iterator[Engine]:
        """The engine, kept open for a question: closing it would cancel who waits for the answer."""
        engine = self.engine
        self._held += 1
        try:
            yield engine
        finally:
            self._held -= 1

    def replace_engine(self, engine: Engine, made_for: object) -> None:
        """Requests in flight end on the engine of before."""
        self._outdated.append(self.engine)
        self.connection, self.made_for = engine, made_for

    async def close_outdated(self) -> None:
        """Closes the engines of before where nothing is in flight."""
        if self._outdated and self.idle:
            outdated, self._outdated = self._outdated, []
            await asyncio.gather(*(engine.close() for engine in outdated))

    async def close(self) -> None:
        engine, self.connection = self.engine, None
        self.up = False
        engines, self._outdated = [engine, *self._outdated], []
        await asyncio.gather(*(each.close() for each in engines))

    @property
    def idle(self) -> bool:
        return not self.in_flight and not self._held

    @property
    def in_flight(self) -> int:
        return sum(lane.in_flight for lane in self.lanes.values())

    def lane(self, model: str) -> Lane:
        if model not in self.lanes:
            self.lanes[model] = Lane(self, model)
        return self.lanes[model]
