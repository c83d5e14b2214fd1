"""Has a server that was restarted load again what an admin had it load: by itself it loads what its start names."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import UUID

from app.background import ended
from app.engines.base import EngineError
from app.errors import DatabaseUnavailable
from app.fleet.fleet import Fleet
from app.fleet.lanes import Server
from app.queue.ordered_models import OrderedModels
from app.telemetry import logger

log = logger("models")

# Weights may be downloaded on the way.
LOAD_SECONDS = 3600.0


class OrderedLoads:
    def __init__(self, store: OrderedModels, fleet: Fleet) -> None:
        self._store = store
        self._fleet = fleet
        self._loads: set[asyncio.Task[None]] = set()
        # What servers told when all that is ordered was found there; nothing is read again before that changes.
        self._settled: object = None

    async def watch(self, every_seconds: float) -> None:
        """Runs until cancelled."""
        try:
            while True:
                with suppress(DatabaseUnavailable):
                    await self._round()
                await asyncio.sleep(every_seconds)
        finally:
            await ended(self._loads)

    async def _round(self) -> None:
        servers = {server.row_id: server for server in self._fleet.servers if server.up}
        told = {row: {model.name: model.state for model in server.models.values()} for row, server in servers.items()}
        if told == self._settled:
            return
        ordered = [each for each in await self._store.read() if each[0] in servers]
        # A model that was unloaded or failed since the server's start is told of, and stays as it is.
        missing = [(server_id, model) for server_id, model in ordered if model not in told[server_id]]
        for server_id, model in missing:
            if await self._store.claim(server_id, model):
                task = asyncio.create_task(self._load(server_id, servers[server_id], model))
                self._loads.add(task)
                task.add_done_callback(self._loads.discard)
        self._settled = None if missing else told

    async def _load(self, server_id: UUID, server: Server, model: str) -> None:
        orders = server.engine.control()
        if orders is None:
            return
        log.info("model is loaded again after its server's restart", server=server.url, model=model)
        try:
            async with orders as control:
                await control.load(model, LOAD_SECONDS)
        except EngineError as error:
            # Asked for at each start, it could end the server each time.
            log.error("model is not loaded again", server=server.url, model=model, reason=error.message)
            with suppress(DatabaseUnavailable):
                await self._store.forget(server_id, model)
