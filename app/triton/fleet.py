"""The servers: which of them serve which model, and where the next request goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.config import Settings
from app.telemetry import IN_FLIGHT, QUARANTINED, SERVER_UP, logger
from app.triton.client import ModelState, TritonClient
from app.triton.faults import TritonError

log = logger("fleet")

PROBE_TIMEOUT_SECONDS = 3.0
COOL_OFF_SECONDS = 2.0

# What says that a model's process or engine is dead while the server still calls itself ready.
DEAD_CODES = frozenset({"model_process_died", "engine_died"})
GONE_CODES = frozenset({"server_unreachable", "server_died", "server_draining"})


@dataclass(eq=False)
class Lane:
    """One model on one server: what is in flight there and whether it moves."""

    server: Server
    model: str
    in_flight: int = 0
    moved_at: float = field(default_factory=time.monotonic)
    cool_until: float = 0.0
    suspect: bool = False
    quarantine: str = ""

    @property
    def open(self) -> bool:
        """Whether requests may go here."""
        state = self.server.models.get(self.model)
        return (
            self.server.up
            and not self.quarantine
            and self.cool_until <= time.monotonic()
            and state is not None
            and state.state == "ready"
        )

    def moved(self) -> None:
        """The engine gave a sign of life."""
        self.moved_at = time.monotonic()


@dataclass(eq=False)
class Server:
    """One Triton endpoint as this process sees it."""

    client: TritonClient
    up: bool = False
    reason: str = "not asked yet"
    models: dict[str, ModelState] = field(default_factory=dict)
    lanes: dict[str, Lane] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.client.url

    @property
    def in_flight(self) -> int:
        return sum(lane.in_flight for lane in self.lanes.values())

    def lane(self, model: str) -> Lane:
        if model not in self.lanes:
            self.lanes[model] = Lane(self, model)
        return self.lanes[model]


class Fleet:
    """All servers of a deployment; holds this process's requests in flight.

    `concurrency` bounds the requests of one model on one server, `server_concurrency` those of all its models.
    """

    def __init__(self, clients: Iterable[TritonClient], *, concurrency: int, server_concurrency: int) -> None:
        self.servers = [Server(client) for client in clients]
        self._concurrency = concurrency
        self._server_concurrency = server_concurrency
        self.changed: Callable[[], None] = lambda: None

    def lanes(self) -> Iterator[Lane]:
        for server in self.servers:
            yield from server.lanes.values()

    async def refresh(self) -> None:
        """Asks every server for its models, all at once."""
        await asyncio.gather(*(self._probe(server) for server in self.servers))

    async def _probe(self, server: Server) -> None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS + 1):
                models = await server.client.models(PROBE_TIMEOUT_SECONDS)
        except (TritonError, TimeoutError) as error:
            self._mark_down(server, error.message if isinstance(error, TritonError) else "The server does not answer.")
            if not server.in_flight:
                await server.client.reconnect()
            return
        before = _ready(server) if server.up else set()
        server.models = {model.name: model for model in models}
        after = _ready(server)
        if not server.up:
            log.info("server is up", server=server.url, models=",".join(sorted(after)) or "none")
        server.up, server.reason = True, ""
        SERVER_UP.labels(server.url).set(1)
        for model in after:
            server.lane(model)
        if after - before:
            self.changed()

    def _mark_down(self, server: Server, reason: str) -> None:
        if server.up or server.reason != reason:
            log.warning("server is down", server=server.url, reason=reason)
        server.up, server.reason = False, reason
        SERVER_UP.labels(server.url).set(0)

    def report(self, lane: Lane, error: TritonError) -> None:
        """Takes note of a request that failed."""
        if error.code in GONE_CODES:
            self._mark_down(lane.server, error.message)
        elif error.code == "model_unavailable":
            lane.server.models.pop(lane.model, None)
        elif error.code in DEAD_CODES:
            self.set_aside(lane, error.message)
        elif error.server_fault:
            lane.suspect = True
            lane.cool_until = time.monotonic() + COOL_OFF_SECONDS

    def set_aside(self, lane: Lane, reason: str) -> None:
        """Quarantine: ready by its own word, but it does not answer."""
        if not lane.quarantine:
            log.error("model set aside", server=lane.server.url, model=lane.model, reason=reason)
        lane.quarantine = reason
        QUARANTINED.labels(lane.server.url, lane.model).set(1)

    def take_back(self, lane: Lane) -> None:
        """It answers again."""
        log.info("model answers again", server=lane.server.url, model=lane.model)
        lane.quarantine = ""
        QUARANTINED.labels(lane.server.url, lane.model).set(0)
        self.changed()

    def free_slots(self, limit: int, without: Collection[str] = ()) -> list[Lane]:
        """Where requests may start now: a lane for each slot, those on the least busy servers first.

        Models `without` are passed over.
        """
        slots = []
        for server in self.servers:
            busy = server.in_flight
            for lane in server.lanes.values():
                if lane.open and lane.model not in without:
                    slots += [(busy + n, lane) for n in range(self._concurrency - lane.in_flight)]
        slots.sort(key=lambda slot: slot[0])
        room = {server: self._server_concurrency - server.in_flight for server in self.servers}
        chosen: list[Lane] = []
        for _, lane in slots:
            if len(chosen) == limit:
                break
            if room[lane.server] > 0:
                room[lane.server] -= 1
                chosen.append(lane)
        return chosen

    def acquire(self, model: str, preferred: str | None = None) -> Lane | None:
        """A slot on the server `preferred`, or else on the one with the least in flight; None where there is none."""
        candidates = [
            lane
            for server in self.servers
            if (lane := server.lanes.get(model)) is not None
            and lane.open
            and lane.in_flight < self._concurrency
            and server.in_flight < self._server_concurrency
        ]
        if not candidates:
            return None
        lane = min(candidates, key=lambda candidate: (candidate.server.url != preferred, candidate.server.in_flight))
        if not lane.in_flight:
            lane.moved()
        lane.in_flight += 1
        IN_FLIGHT.labels(lane.server.url).inc()
        return lane

    def release(self, lane: Lane) -> None:
        lane.in_flight -= 1
        IN_FLIGHT.labels(lane.server.url).dec()


def _ready(server: Server) -> set[str]:
    return {name for name, model in server.models.items() if model.state == "ready"}


@asynccontextmanager
async def open_fleet(settings: Settings) -> AsyncIterator[Fleet]:
    """Clients connect on first use: a server that is down delays nothing here."""
    clients = [TritonClient(url) for url in settings.triton_urls]
    try:
        yield Fleet(clients, concurrency=settings.model_concurrency, server_concurrency=settings.server_concurrency)
    finally:
        await asyncio.gather(*(client.close() for client in clients))
