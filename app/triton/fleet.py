"""The servers: which of them serve which model, and where the next request goes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.telemetry import IN_FLIGHT, SERVER_UP, logger
from app.triton.client import ModelState, TritonClient, TritonError

log = logger("fleet")

PROBE_TIMEOUT_SECONDS = 3.0
COOL_OFF_SECONDS = 2.0


@dataclass(eq=False)
class Server:
    """One Triton endpoint as this process sees it."""

    client: TritonClient
    up: bool = False
    reason: str = "not asked yet"
    models: dict[str, ModelState] = field(default_factory=dict)
    in_flight: Counter[str] = field(default_factory=Counter)
    cool_until: float = 0.0

    @property
    def url(self) -> str:
        return self.client.url

    def serves(self, model: str) -> bool:
        state = self.models.get(model)
        return self.up and self.cool_until <= time.monotonic() and state is not None and state.state == "ready"


class Fleet:
    """All servers of a deployment; holds this process's requests in flight."""

    def __init__(self, clients: Iterable[TritonClient], *, concurrency: int) -> None:
        self.servers = [Server(client) for client in clients]
        self._concurrency = concurrency
        self.changed: Callable[[], None] = lambda: None

    async def refresh(self) -> None:
        """Asks every server for its models, all at once."""
        await asyncio.gather(*(self._probe(server) for server in self.servers))

    async def _probe(self, server: Server) -> None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS + 1):
                models = await server.client.models(PROBE_TIMEOUT_SECONDS)
        except (TritonError, TimeoutError) as error:
            reason = error.message if isinstance(error, TritonError) else "The server does not answer."
            self._mark_down(server, reason)
            return
        before = {name for name, model in server.models.items() if model.state == "ready"} if server.up else set()
        server.models = {model.name: model for model in models}
        after = {name for name, model in server.models.items() if model.state == "ready"}
        if not server.up:
            log.info("server is up", server=server.url, models=",".join(sorted(after)) or "none")
        server.up, server.reason = True, ""
        SERVER_UP.labels(server.url).set(1)
        if after - before:
            self.changed()

    def _mark_down(self, server: Server, reason: str) -> None:
        if server.up or server.reason != reason:
            log.warning("server is down", server=server.url, reason=reason)
        server.up, server.reason = False, reason
        SERVER_UP.labels(server.url).set(0)

    def report(self, server: Server, model: str, error: TritonError) -> None:
        """Takes note of a request that failed through the server's fault."""
        if error.code in ("server_unreachable", "server_died", "server_draining"):
            self._mark_down(server, error.message)
        elif error.code == "model_unavailable":
            server.models.pop(model, None)
        elif error.server_fault:
            server.cool_until = time.monotonic() + COOL_OFF_SECONDS

    def free_slots(self) -> dict[str, int]:
        """How many more requests of each model may start now."""
        free: Counter[str] = Counter()
        for server in self.servers:
            for model in server.models:
                if server.serves(model):
                    free[model] += max(0, self._concurrency - server.in_flight[model])
        return {model: count for model, count in free.items() if count}

    def acquire(self, model: str) -> Server | None:
        """A slot on the server with the least in flight, None where there is none now."""
        candidates = [
            server for server in self.servers if server.serves(model) and server.in_flight[model] < self._concurrency
        ]
        if not candidates:
            return None
        server = min(candidates, key=lambda candidate: candidate.in_flight.total())
        server.in_flight[model] += 1
        IN_FLIGHT.labels(server.url).inc()
        return server

    def release(self, server: Server, model: str) -> None:
        server.in_flight[model] -= 1
        IN_FLIGHT.labels(server.url).dec()


@asynccontextmanager
async def open_fleet(urls: Iterable[str], *, concurrency: int) -> AsyncIterator[Fleet]:
    """Clients connect on first use: a server that is down delays nothing here."""
    clients = [TritonClient(url) for url in urls]
    try:
        yield Fleet(clients, concurrency=concurrency)
    finally:
        await asyncio.gather(*(client.close() for client in clients))
