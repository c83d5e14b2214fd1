"""Any server that speaks OpenAI's API: vLLM's and SGLang's own, llama.cpp's, Ollama, or a paid one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import from_json

from app.engines.base import FINAL, RETRY, Endpoint, Engine, EngineError, ModelState, Request
from app.engines.http import Clock, HttpConnection
from app.engines.http_answers import told
from app.engines.http_faults import cannot_be_read, classify_in_stream
from app.engines.openai_wire import LLAMA_CPP, Answer, chat_body, completion_body, vectors_of
from app.tasks.chunks import Chunk
from app.tasks.embed import EMBED
from app.tasks.generate import GENERATE

VERSION = "/v1"
EMBEDDING_BATCH = 64
# A server elsewhere, which may count each question, is asked for its models this often.
FRESH_SECONDS = 15.0
MAX_MODELS = 1000
# Where servers that call themselves so tell their version, below the root, and by which name.
DESCRIPTIONS = {LLAMA_CPP: ("/props", "build_info"), "vllm": ("/version", "version")}
# What of a request's body is no parameter.
CONTENT = frozenset({"model", "prompt", "messages", "tools", "documents", "stream", "stream_options"})
MAX_NAME = 255
# What a server answers that has no /completions.
NO_COMPLETIONS = frozenset({"model_unavailable", "not_supported_by_model"})


class OpenAIEngine(Engine):
    """The address is the base URL that an OpenAI client takes; `/v1` is added where it has no path."""

    kind = "openai"
    takes_messages = True

    def __init__(self, endpoint: Endpoint) -> None:
        path = urlsplit(endpoint.address).path
        self._http = HttpConnection(endpoint, "" if path.strip("/") else VERSION)
        self._root = HttpConnection(replace(endpoint, address=endpoint.address.rstrip("/").removesuffix(VERSION)))
        self._engine: tuple[str, str] | None = None
        self._pause = FRESH_SECONDS if endpoint.address.startswith("https:") else 0.0
        self._models: list[ModelState] = []
        self._asked_at = float("-inf")
        self._owner = ""
        self._only_chats = False

    def takes(self, task: str) -> bool:
        return task in (GENERATE, EMBED)

    def control(self) -> None:
        """It takes no orders."""

    async def close(self) -> None:
        await self._http.close()
        await self._root.close()

    async def reconnect(self) -> None:
        self._asked_at, self._engine = float("-inf"), None
        await self._http.reconnect()
        await self._root.reconnect()

    async def models(self, timeout: float) -> list[ModelState]:
        """As Engine.models; what it lists is ready.

        Raises:
            EngineError: the server does not answer.
        """
        if time.monotonic() - self._asked_at < self._pause:
            return self._models
        try:
            answer = await self._http.get("/models", timeout)
        except EngineError as error:
            if error.code == "idle_timeout":
                raise EngineError("server_unreachable", "The server does not answer.", RETRY) from None
            raise
        listed = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(listed, list):
            raise cannot_be_read("it is no list of models")
        rows = [row for row in listed[:MAX_MODELS] if isinstance(row, dict) and _is_name(row.get("id"))]
        self._owner = str(rows[0].get("owned_by") or "") if rows else ""
        engine, revision = await self._describe_engine(timeout)
        self._models = [ModelState(row["id"], "1", "ready", "", revision or told(row, "root"), engine) for row in rows]
        self._asked_at = time.monotonic()
        return self._models

    async def _describe_engine(self, timeout: float) -> tuple[str, str]:
        """The server's version and the file of its one model, of servers that are known to tell; asked once."""
        if self._engine is None:
            path, name = DESCRIPTIONS.get(self._owner, ("", ""))
            self._engine = "", ""
            if path:
                with suppress(EngineError):
                    described = await self._root.get(path, timeout)
                    self._engine = told(described, name), told(described, "model_path").rpartition("/")[2]
        return self._engine

    async def describe(self, model: str, timeout: float) -> dict[str, Any]:
        """It tells nothing of a model's inputs and outputs."""
        return {"inputs": [], "outputs": [], "statistics": []}

    async def run(self, request: Request) -> AsyncGenerator[Chunk]:
        """As Engine.run. A chat goes to /chat/completions as it came, a prompt to /completions.

        Raises:
            EngineError: the request did not end with an answer.
        """
        if request.task == EMBED:
            chunks = self._embed(request)
        elif request.messages is not None:
            chunks = self._chat(request, request.messages)
        else:
            chunks = self._complete(request)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def ping(self, model: str, timeout: float) -> None:
        """Asks for one token."""
        request = Request(model, "ping", {"max_tokens": 1}, "trial", timeout, timeout)
        async with aclosing(self.run(request)) as chunks:
            async for _ in chunks:
                pass

    def _chat(self, request: Request, messages: list[Any]) -> AsyncGenerator[Chunk]:
        answer = Answer(request.parameters.get("max_tokens"), (request.asked or {}).get("tool_choice"))
        return self._stream("/chat/completions", chat_body(request, messages, self._owner), answer, request)

    async def _complete(self, request: Request) -> AsyncGenerator[Chunk]:
        """A server that knows chats only is sent the prompt as what a user says."""
        if not self._only_chats:
            body = completion_body(request, self._owner)
            echoed = "" if request.parameters.get("prompt_logprobs") is None else request.prompt
            answer = Answer(request.parameters.get("max_tokens"), echoed=echoed)
            begun = False
            try:
                async with aclosing(self._stream("/completions", body, answer, request)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except EngineError as error:
                if begun or error.code not in NO_COMPLETIONS:
                    raise
        async with aclosing(self._chat(request, [{"role": "user", "content": request.prompt}])) as chunks:
            async for chunk in chunks:
                self._only_chats = True
                yield chunk

    async def _stream(self, path: str, body: dict[str, Any], answer: Answer, request: Request) -> AsyncGenerator[Chunk]:
        clock = self._http.clock(request)
        request.sent.update({name: value for name, value in body.items() if name not in CONTENT})
        async with aclosing(self._http.events(path, body, clock)) as events:
            async for event in events:
                if isinstance(event, dict) and event.get("error"):
                    raise classify_in_stream(event["error"])
                try:
                    chunk = answer.chunk(event)
                except ValueError as malformed:
                    raise cannot_be_read(str(malformed)) from None
                if chunk.texts or chunk.size:
                    clock.progress()
                    yield chunk
        if not answer.finished:
            raise EngineError("stream_ended", "The server ended the stream before the answer was complete.", RETRY)
        yield answer.last()

    async def _embed(self, request: Request) -> AsyncGenerator[Chunk]:
        """The vectors of the texts in the JSON array `prompt`, all in the last chunk; those before show progress."""
        texts: list[str] = from_json(request.prompt)
        vectors: list[str] = []
        tokens: int | None = None
        clock: Clock = self._http.clock(request)
        for start in range(0, len(texts), EMBEDDING_BATCH):
            part = texts[start : start + EMBEDDING_BATCH]
            answer = await self._http.post("/embeddings", {"model": request.model, "input": part}, clock)
            clock.progress()
            try:
                made, counted = vectors_of(answer, len(part))
            except ValueError as malformed:
                raise EngineError(
                    "model_contract", "The model's answer is not one vector a text.", FINAL, raw=str(malformed)
                ) from None
            vectors += made
            tokens = tokens if counted is None else (tokens or 0) + counted
            yield Chunk([], [], size=sum(map(len, made)))
        yield Chunk(vectors, ["stop"] * len(vectors), tokens, [0], final=True)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and "\x00" not in value
