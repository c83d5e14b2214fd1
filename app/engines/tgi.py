"""Text Generation Inference, by its own routes: one model, a prompt in, its tokens out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from app.engines.base import RETRY, Endpoint, Engine, EngineError, ModelState, Request
from app.engines.http import HttpConnection
from app.engines.http_answers import told
from app.engines.http_faults import cannot_be_read
from app.engines.tgi_wire import Answer, generate_body, incomplete, model_of
from app.tasks.chunks import Chunk
from app.tasks.generate import GENERATE


class TgiEngine(Engine):
    """The address is the base URL that its clients take; it has one model, which /info names."""

    kind = "tgi"

    def __init__(self, endpoint: Endpoint) -> None:
        self._http = HttpConnection(endpoint, basic=True)

    def takes(self, task: str) -> bool:
        return task == GENERATE

    def control(self) -> None:
        """It takes no orders."""

    async def close(self) -> None:
        await self._http.close()

    async def reconnect(self) -> None:
        await self._http.reconnect()

    async def models(self, timeout: float) -> list[ModelState]:
        """As Engine.models; /health tells whether its model answers.

        Raises:
            EngineError: the server does not answer.
        """
        try:
            info = await self._http.get("/info", timeout)
            name = model_of(info)
            await self._http.check("/health", timeout)
        except ValueError as malformed:
            raise cannot_be_read(str(malformed)) from None
        except EngineError as error:
            if error.code == "idle_timeout":
                raise EngineError("server_unreachable", "The server does not answer.", RETRY) from None
            if error.code == "server_full":
                raise EngineError("server_full", "The server says that its model is not healthy.", RETRY) from None
            raise
        return [ModelState(name, "1", "ready", "", told(info, "model_sha"), told(info, "version"))]

    async def describe(self, model: str, timeout: float) -> dict[str, Any]:
        """It tells nothing of a model's inputs and outputs."""
        return {"inputs": [], "outputs": [], "statistics": []}

    async def ping(self, model: str, timeout: float) -> None:
        """Asks for one token, whole."""
        request = Request(model, "ping", {"max_tokens": 1}, "trial", timeout, timeout)
        await self._http.post("/generate", generate_body(request), self._http.clock(request))

    async def run(self, request: Request) -> AsyncGenerator[Chunk]:
        """As Engine.run.

        Raises:
            EngineError: the request did not end with an answer.
        """
        body, answer, clock = generate_body(request), Answer(request.parameters), self._http.clock(request)
        request.sent.update(body["parameters"])
        async with aclosing(self._http.events("/generate_stream", body, clock)) as events:
            async for event in events:
                try:
                    chunk = answer.chunk(event)
                except ValueError as malformed:
                    raise cannot_be_read(str(malformed)) from None
                clock.progress()
                yield chunk
                if chunk.final:
                    return
        raise incomplete()
