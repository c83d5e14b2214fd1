"""Loading and unloading a model on a server, where its kind takes such orders; for admins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from app.background import ended
from app.db.engine import Database
from app.engines.base import GONE_CODES, Control, EngineError, NotLoaded, sentence
from app.engines.registry import TAKE_ORDERS
from app.errors import ModelNotLoaded, ModelOrderRefused, ServerUnreachable
from app.fleet.lanes import Server
from app.queue.audit import Action, Actor, record
from app.queue.ordered_models import OrderedModels
from app.queue.servers import ServerStore
from app.services.catalog import model_not_found
from app.services.servers import Servers
from app.telemetry import logger

log = logger("models")

# So long an order is waited for; then it goes on, and its end shows in the model's state.
WAIT_SECONDS = 10.0
ASK_SECONDS = 5.0
# Weights may be downloaded on the way.
LOAD_SECONDS = 3600.0
# Requests under way are finished before a model is gone.
UNLOAD_SECONDS = 1800.0

What = Literal["load", "unload"]
ORDERED = {"load": Action.MODEL_LOAD_ORDERED, "unload": Action.MODEL_UNLOAD_ORDERED}


class ModelOrder(BaseModel):
    """What became of an order."""

    server_id: UUID
    model: str
    state: Literal["ready", "unloaded", "loading", "unloading"] = Field(
        description="`loading` and `unloading`: it goes on; the server's `served` shows its end"
    )

    @property
    def goes_on(self) -> bool:
        return self.state in ("loading", "unloading")


class ModelOrders:
    def __init__(self, database: Database, servers: Servers) -> None:
        self._database = database
        self._servers = servers
        self._store = ServerStore(database)
        self._ordered = OrderedModels(database)
        self._orders: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """A server goes on with what it was ordered."""
        await ended(self._orders)

    async def give(self, server_id: UUID, model: str, what: What, actor: Actor) -> ModelOrder:
        """Has a model loaded or unloaded, whoever waits for it; what runs there is finished before it is unloaded.

        Raises:
            ServerNotFound: there is none with this id.
            ModelNotFound: the server's repository has no such model.
            ModelOrderRefused: a server of this kind takes no orders, or this one is not set to.
            ModelNotLoaded: it could not be loaded or unloaded; the server's reason is told.
            ServerUnreachable: it does not answer.
        """
        server = await self._reached(server_id)
        task = asyncio.create_task(self._carry_out(server_id, server, model, what, actor))
        self._orders.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=WAIT_SECONDS)
        if not done:
            return ModelOrder(server_id=server_id, model=model, state="loading" if what == "load" else "unloading")
        task.result()
        return ModelOrder(server_id=server_id, model=model, state="ready" if what == "load" else "unloaded")

    async def others(self, server_id: UUID) -> Sequence[str]:
        """Models of a server's repository that it does not tell of, as they were never loaded; none if it is away."""
        try:
            server = await self._reached(server_id)
            async with _control(server) as control:
                names = await control.names(ASK_SECONDS)
        except (ModelOrderRefused, ServerUnreachable, EngineError):
            return []
        return sorted(set(names) - server.models.keys())

    async def _reached(self, server_id: UUID) -> Server:
        view = await self._servers.get(server_id)
        if view.kind not in TAKE_ORDERS:
            raise ModelOrderRefused(
                f"{view.name} is of the kind {view.kind}, which loads and unloads no models by request: do it where "
                "the server is run."
            )
        server = self._servers.observed(view.address)
        if server is None or not server.up:
            why = f": {server.reason}" if server is not None and server.reason else "."
            raise ServerUnreachable(f"{view.name} cannot be reached{why} Nothing was ordered.")
        return server

    async def _carry_out(self, server_id: UUID, server: Server, model: str, what: What, actor: Actor) -> None:
        try:
            async with _control(server) as control:
                names = await control.names(ASK_SECONDS)
                if model not in names:
                    raise model_not_found(model, sorted(names))
                # Before it is given: what a server does cannot be taken back where no row could be written.
                async with self._database.transaction() as connection:
                    details = {"server": server.title, "model": model}
                    await record(connection, ORDERED[what], actor, None, str(server_id), details=details)
                    await self._ordered.write(connection, server_id, model, loaded=what == "load")
                log.info(f"model is to {what}", server=server.url, model=model)
                if what == "load":
                    await control.load(model, LOAD_SECONDS)
                elif not await control.unload(model, ASK_SECONDS, UNLOAD_SECONDS):
                    raise NotLoaded(f"It is still being unloaded after {UNLOAD_SECONDS:g} s.", raw="")
        except EngineError as error:
            # What cannot be loaded is not tried at each start of the server.
            await self._ordered.forget(server_id, model)
            raise _refused(server, model, what, error) from None
        finally:
            # Every process looks at the server now.
            await self._store.look_again()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._orders.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a model could not be loaded or unloaded", reason=str(error))


def _control(server: Server) -> AbstractAsyncContextManager[Control]:
    control = server.engine.control()
    assert control is not None
    return control


def _refused(
    server: Server, model: str, what: What, error: EngineError
) -> ModelOrderRefused | ModelNotLoaded | ServerUnreachable:
    if isinstance(error, NotLoaded) and error.refused:
        return ModelOrderRefused(
            f"{server.title} loads and unloads no models by request: start Triton with --model-control-mode=explicit, "
            "or change its repository and restart it."
        )
    if error.code in GONE_CODES:
        return ServerUnreachable(f"{server.title} cannot be reached: {sentence(error.message)}")
    return ModelNotLoaded(f"{server.title} could not {what} {model}: {sentence(error.message)}")
