"""A server whose models go by other names here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from app.engines.base import Control, Engine, EngineError, ModelState, Request
from app.tasks.chunks import Chunk


class Aliased(Engine):
    """An engine of which only the models in `aliases` (theirs to ours) are offered, by our names."""

    def __init__(self, engine: Engine, aliases: Mapping[str, str]) -> None:
        self.kind = engine.kind
        self.takes_messages = getattr(engine, "takes_messages", False)
        self.answers_whole = getattr(engine, "answers_whole", False)
        self.takes_images = getattr(engine, "takes_images", False)
        self.queues = getattr(engine, "queues", False)
        self._engine = engine
        self._ours = dict(aliases)
        self._theirs = {ours: theirs for theirs, ours in aliases.items()}

    def takes(self, task: str) -> bool:
        return self._engine.takes(task)

    async def models(self, timeout: float) -> list[ModelState]:
        """As Engine.models; a server that lists none is believed to have those that the aliases name."""
        try:
            models = await self._engine.models(timeout)
        except EngineError as error:
            if error.code != "model_unavailable":
                raise
            return [ModelState(ours, "1", "ready", "") for ours in self._theirs]
        return [replace(model, name=self._ours[model.name]) for model in models if model.name in self._ours]

    async def describe(self, model: str, timeout: float) -> dict[str, Any]:
        return await self._engine.describe(self._theirs[model], timeout)

    async def run(self, request: Request) -> AsyncGenerator[Chunk]:
        async with aclosing(self._engine.run(replace(request, model=self._theirs[request.model]))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def ping(self, model: str, timeout: float) -> None:
        await self._engine.ping(self._theirs[model], timeout)

    async def reconnect(self) -> None:
        await self._engine.reconnect()

    async def close(self) -> None:
        await self._engine.close()

    def control(self) -> AbstractAsyncContextManager[Control] | None:
        control = self._engine.control()
        return None if control is None else self._controlled(control)

    @asynccontextmanager
    async def _controlled(self, control: AbstractAsyncContextManager[Control]) -> Any:
        async with control as opened:
            yield _AliasedControl(opened, self._theirs)


class _AliasedControl(Control):
    def __init__(self, control: Control, theirs: Mapping[str, str]) -> None:
        self._control = control
        self._theirs = theirs

    async def names(self, timeout: float) -> list[str]:
        known = set(await self._control.names(timeout))
        return [ours for ours, theirs in self._theirs.items() if theirs in known]

    async def taken(self, model: str, timeout: float) -> int:
        return await self._control.taken(self._theirs[model], timeout)

    async def unload(self, model: str, timeout: float, patience: float) -> bool:
        return await self._control.unload(self._theirs[model], timeout, patience)

    async def load(self, model: str, timeout: float) -> None:
        await self._control.load(self._theirs[model], timeout)
