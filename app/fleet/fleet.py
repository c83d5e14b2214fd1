"""The servers: which of them serve which model, and where the next request goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from app.background import ended
from app.config import Settings
from app.engines.aliases import Aliased
from app.engines.base import DEAD_CODES, GONE_CODES, Engine, EngineError
from app.engines.registry import open_engine
from app.fleet.lanes import Lane, Server
from app.fleet.listing import Listing
from app.fleet.servers import ServerEntry, ServerList
from app.queue.servers import ServerStore
from app.telemetry import logger
from app.telemetry.metrics import IN_FLIGHT, QUARANTINED, SERVER_UP, SLOTS

log = logger("fleet")

PROBE_TIMEOUT_SECONDS = 3.0
COOL_OFF_SECONDS = 2.0


class Fleet:
    """All servers of a deployment; holds this process's requests in flight.

    `concurrency` bounds the requests of one model on one server, `server_concurrency` those of all its models.
    """

    def __init__(
        self,
        listing: Listing,
        engine_for: Callable[[ServerEntry], Engine],
        *,
        concurrency: int,
        server_concurrency: int,
    ) -> None:
        self.servers: list[Server] = []
        self._leaving: list[Server] = []
        self._listing = listing
        self._engine_for = engine_for
        self._probes: dict[Server, asyncio.Task[None]] = {}
        self._concurrency = concurrency
        self._server_concurrency = server_concurrency
        self.changed: Callable[[], None] = lambda: None
        # Set with each model that is set aside.
        self.withdrawn = asyncio.Event()
        self.freed: Callable[[], None] = lambda: None
        self._follow_listing()

    def concurrency_of(self, server: Server) -> int:
        """How many requests of each model it gets at once."""
        return server.entry.concurrency or self._concurrency

    def ahead_of(self, lane: Lane) -> int:
        """How many more an engine with a queue of its own gets, so that it need not wait while ends are settled."""
        return lane.turnover.ahead(self.concurrency_of(lane.server)) if lane.server.engine.queues else 0

    def lanes(self) -> Iterator[Lane]:
        for server in (*self.servers, *self._leaving):
            yield from server.lanes.values()

    async def follow(self) -> None:
        """Takes in servers that are listed now, and lets go of those that no longer are."""
        await self._listing.refresh()
        before = self.servers
        self._follow_listing()
        for server in self.servers:
            if server not in before:
                log.info("server joins", server=server.url, name=server.name or "none", kind=server.entry.kind)
                self._start_probe(server)
        for server in before:
            if not server.listed:
                log.info("server leaves", server=server.url, name=server.name or "none", in_flight=server.in_flight)
        gone = [server for server in self._leaving if server.idle and server not in self._probes]
        self._leaving = [server for server in self._leaving if server not in gone]
        for server in gone:
            _forget_metrics(server)
        await asyncio.gather(
            *(server.close() for server in gone), *(server.close_outdated() for server in self.servers)
        )

    def _follow_listing(self) -> None:
        """One that is listed again while it leaves stays as it is."""
        known = {server.url: server for server in (*self.servers, *self._leaving)}
        self.servers = []
        for listed in self._listing.read():
            entry = listed.entry
            made_for = (entry.kind, entry.timeouts, entry.credential, entry.models)
            server = known.pop(entry.url, None)
            if server is None:
                server = Server(entry, self._engine_for(entry), made_for=made_for)
            elif server.made_for != made_for:
                server.replace_engine(self._engine_for(entry), made_for)
            if server.row_id != listed.id:
                # Its slots may have gone with the row of before.
                for lane in server.lanes.values():
                    lane.slots_made = 0
            server.entry, server.row_id, server.listed = entry, listed.id, True
            server.host_id = listed.host_id
            server.wanted = listed.wanted
            self.servers.append(server)
        self._leaving = list(known.values())
        for server in self._leaving:
            server.listed = False

    async def refresh(self) -> None:
        """Follows the list, then asks every server for its models, all at once."""
        await self.follow()
        for server in (*self.servers, *self._leaving):
            self._start_probe(server)
        await asyncio.gather(*self._probes.values())

    def _start_probe(self, server: Server) -> None:
        """One at a time for each server."""
        if server not in self._probes:
            probe = self._probes[server] = asyncio.create_task(self._probe(server))
            probe.add_done_callback(lambda _: self._probes.pop(server))

    async def close(self) -> None:
        await ended(self._probes.values())
        await asyncio.gather(*(server.close() for server in (*self.servers, *self._leaving)))

    async def _probe(self, server: Server) -> None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS + 1):
                models = await server.engine.models(PROBE_TIMEOUT_SECONDS)
        except (EngineError, TimeoutError) as error:
            self._mark_down(server, error.message if isinstance(error, EngineError) else "The server does not answer.")
            if server.idle:
                await server.engine.reconnect()
            return
        before = _ready(server) if server.up else set()
        server.models = {model.name: model for model in models}
        after = _ready(server)
        if not server.up:
            server.since = datetime.now(UTC)
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
        if server.up or server.since is None:
            server.since = datetime.now(UTC)
        server.up, server.reason = False, reason
        SERVER_UP.labels(server.url).set(0)

    def report(self, lane: Lane, error: EngineError) -> None:
        """Takes note of a request that failed."""
        if error.code in GONE_CODES:
            self._mark_down(lane.server, error.message)
        elif error.code == "model_unavailable":
            lane.server.models.pop(lane.model, None)
        elif error.code in DEAD_CODES:
            self.set_aside(lane, error.message, dead=True)
        elif error.retry_after is not None:
            lane.cool_until = time.monotonic() + error.retry_after
        elif error.server_fault:
            lane.suspect = True
            lane.cool_until = time.monotonic() + COOL_OFF_SECONDS

    def set_aside(self, lane: Lane, reason: str, *, dead: bool = False) -> None:
        """Quarantine: ready by its own word, but it does not answer."""
        if not lane.quarantine:
            log.error("model set aside", server=lane.server.url, model=lane.model, reason=reason)
        lane.quarantine, lane.dead = reason, dead
        self.withdrawn.set()
        QUARANTINED.labels(lane.server.url, lane.model).set(1)

    def take_back(self, lane: Lane) -> None:
        """It answers again."""
        log.info("model answers again", server=lane.server.url, model=lane.model)
        lane.quarantine, lane.dead = "", False
        QUARANTINED.labels(lane.server.url, lane.model).set(0)
        self.changed()

    def free_slots(
        self, limit: int, without: Collection[str] = (), *, few: int | None = None, many: Collection[str] = ()
    ) -> list[Lane]:
        """Where requests may start now: a lane for each slot, those on the least busy servers first, then the cheapest.

        Models `without` are passed over; of a lane there are at most `few`, unless its model is one of `many`.
        """
        slots = []
        for server in self.servers:
            busy = server.in_flight
            for lane in server.lanes.values():
                if lane.open and lane.model not in without:
                    free = self.concurrency_of(server) + self.ahead_of(lane) - lane.in_flight
                    if few is not None and lane.model not in many:
                        free = min(free, few)
                    slots += [((busy + n, server.price_rank), lane) for n in range(free)]
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

    def acquire(self, model: str, url: str | None = None) -> Lane | None:
        """A slot on the server `url`, or on the least busy one, the cheapest of these; None where there is none."""
        lanes = (server.lanes.get(model) for server in self.servers if url is None or server.url == url)
        candidates = [lane for lane in lanes if lane is not None and self._has_room(lane, self.ahead_of(lane))]
        if not candidates:
            return None
        lane = candidates[0]
        if len(candidates) > 1:
            lane = min(candidates, key=lambda each: (each.server.in_flight, each.server.price_rank))
        self._take(lane)
        return lane

    def _has_room(self, lane: Lane, ahead: int = 0) -> bool:
        return (
            lane.open
            and lane.in_flight < self.concurrency_of(lane.server) + ahead
            and lane.server.in_flight < self._server_concurrency
        )

    def _take(self, lane: Lane) -> None:
        if not lane.in_flight:
            lane.begin()
        lane.in_flight += 1
        lane.turnover.started()
        lane.in_flight_gauge.inc()

    def release(self, lane: Lane) -> None:
        lane.in_flight -= 1
        lane.turnover.ended()
        lane.in_flight_gauge.dec()
        self.freed()

    def show_slots(self) -> None:
        """Tells the metrics how many requests of a model each server may get from here."""
        for lane in self.lanes():
            most = min(self.concurrency_of(lane.server), self._server_concurrency)
            SLOTS.labels(lane.server.url, lane.model).set(most if lane.open else 0)

    def wait_for_slots(self, lane: Lane, start: Callable[[], bool]) -> None:
        """`start` is called in each slot that `share_out` takes for it, until it returns False."""
        lane.waiting.append(start)
        self.freed()

    def stop_waiting(self, lane: Lane, start: Callable[[], bool]) -> None:
        if start in lane.waiting:
            lane.waiting.remove(start)

    def share_out(self) -> None:
        """Gives the free slots to those that wait for more of them, one at a time in turn."""
        for lane in self.lanes():
            while lane.waiting and self._has_room(lane):
                start = lane.waiting.popleft()
                self._take(lane)
                if start():
                    lane.waiting.append(start)


def _ready(server: Server) -> set[str]:
    return {name for name, model in server.models.items() if model.state == "ready"}


def _forget_metrics(server: Server) -> None:
    SERVER_UP.remove(server.url)
    for model in server.lanes:
        for gauge in (IN_FLIGHT, SLOTS, QUARANTINED):
            gauge.remove(server.url, model)


def _engine_for(entry: ServerEntry, credential_directory: Path) -> Engine:
    engine = open_engine(entry.endpoint(credential_directory))
    return Aliased(engine, entry.models) if entry.models else engine


@asynccontextmanager
async def open_fleet(settings: Settings, store: ServerStore | None = None) -> AsyncIterator[Fleet]:
    """Engines connect on first use: a server that is down delays nothing here.

    Without a `store`, the fleet has the servers of this process's settings alone.
    """
    fleet = Fleet(
        Listing(ServerList(settings.triton_urls, settings.triton_servers_file), store),
        partial(_engine_for, credential_directory=settings.credential_directory),
        concurrency=settings.model_concurrency,
        server_concurrency=settings.server_concurrency,
    )
    try:
        yield fleet
    finally:
        await fleet.close()
