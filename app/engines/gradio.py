"""A Gradio app: h2oGPT, a chat interface, or any function of an app that takes a text and answers with one.

It is spoken to over HTTP, as Gradio's own clients do. `gradio_client` is synchronous: it would take threads for each
call, and has no time-outs of our kind. A call is POST /call/{endpoint}; its messages come from /queue/data, as those of
a session that has the call's id; /cancel stops it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from app.engines.base import FINAL, RETRY, Endpoint, Engine, EngineError, ModelState, Request
from app.engines.gradio_wire import AppEndpoint, app_error, endpoints_of
from app.engines.http import Clock, HttpConnection
from app.engines.http_answers import told
from app.engines.http_faults import cannot_be_read, classify_status
from app.tasks.chunks import Chunk, tokens_in
from app.tasks.generate import GENERATE

CANCEL_SECONDS = 5.0
# An app says every 15 s that it is there, to those that wait in its queue too.
QUEUE_SECONDS = 45.0
UNAUTHORIZED = 401
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class App:
    """What runs at the address now: `id` is another one after each restart."""

    id: Any
    prefix: str
    endpoints: Mapping[str, AppEndpoint]
    version: str = ""


class GradioEngine(Engine):
    """The address is that of the app's page; its models are its named endpoints."""

    kind = "gradio"
    takes_messages = True

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._http = HttpConnection(endpoint, basic=True)
        self._app: App | None = None
        self._logins = 0
        self._logging_in = asyncio.Lock()
        # Endpoints that took back what they had said: their answers come whole from then on.
        self._rewriting: set[str] = set()
        self._cancels: set[asyncio.Task[None]] = set()

    def takes(self, task: str) -> bool:
        return task == GENERATE

    def control(self) -> None:
        """It takes no orders."""

    async def close(self) -> None:
        if self._cancels:
            await asyncio.wait(self._cancels)
        await self._http.close()

    async def reconnect(self) -> None:
        await self._http.reconnect()

    async def models(self, timeout: float) -> list[ModelState]:
        """As Engine.models: the endpoints that can be called with a text alone.

        Raises:
            EngineError: the app does not answer.
        """
        try:
            app = await self._look(timeout)
        except EngineError as error:
            if error.code == "idle_timeout":
                raise EngineError("server_unreachable", "The server does not answer.", RETRY) from None
            raise
        return [ModelState(name, "1", "ready", "", engine=app.version) for name in app.endpoints]

    async def describe(self, model: str, timeout: float) -> dict[str, Any]:
        """Its inputs are those of any text."""
        return {"inputs": [], "outputs": [], "statistics": []}

    async def ping(self, model: str, timeout: float) -> None:
        request = Request(model, "ping", {"max_tokens": 1}, "trial", timeout, timeout)
        async with aclosing(self.run(request)) as chunks:
            async for _ in chunks:
                pass

    async def run(self, request: Request) -> AsyncGenerator[Chunk]:
        """As Engine.run.

        Raises:
            EngineError: the request did not end with an answer.
        """
        app = self._app or await self._look(request.idle_timeout)
        endpoint = app.endpoints.get(request.model)
        if endpoint is None:
            raise classify_status(404, "")
        data = endpoint.data(request)
        request.sent.update(endpoint.sent(data))
        clock = self._http.clock(request)
        event = await self._submit(app, endpoint, data, clock)
        answer = _Answer(endpoint, whole=endpoint.name in self._rewriting, prompt=data)
        progress = _Progress(clock)
        over = False
        try:
            path = f"{app.prefix}/queue/data?session_hash={quote(event)}"
            async with aclosing(self._http.events(path, None, clock, method="GET")) as messages:
                async for message in messages:
                    if progress.has_part(message):
                        over = message["msg"] == "process_completed"
                        yield self._read(answer, message, last=over)
                        if over:
                            return
            raise EngineError("stream_ended", "The app ended the stream before the answer was complete.", RETRY)
        finally:
            if not over:
                self._later(self._cancel(app, endpoint, event))

    def _read(self, answer: _Answer, message: dict[str, Any], *, last: bool) -> Chunk:
        try:
            return answer.chunk(message, last=last)
        except _Rewritten:
            self._rewriting.add(answer.endpoint.name)
            raise EngineError(
                "answer_rewritten",
                "The app replaced what it had said. Its next answers are taken when they are complete.",
                RETRY,
            ) from None
        except ValueError as malformed:
            raise cannot_be_read(str(malformed)) from None

    async def _look(self, timeout: float) -> App:
        """The app, described anew where it is another one than before."""
        clock = Clock(timeout, timeout, timeout)
        if (app := self._app) is not None:
            answer = await self._http.get(f"{app.prefix}/app_id", timeout)
            if isinstance(answer, dict) and answer.get("app_id") == app.id:
                return app
        config = await self._as_user(lambda: self._http.get("/config", timeout), clock)
        if not isinstance(config, dict):
            raise cannot_be_read("it is no Gradio app")
        # None before Gradio 5.
        prefix = str(config.get("api_prefix") or "").rstrip("/")
        info = await self._as_user(lambda: self._http.get(f"{prefix}/info", timeout), clock)
        try:
            self._app = App(config.get("app_id"), prefix, endpoints_of(config, info), told(config, "version"))
        except ValueError as malformed:
            raise cannot_be_read(str(malformed)) from None
        return self._app

    async def _submit(self, app: App, endpoint: AppEndpoint, data: list[Any], clock: Clock) -> str:
        """The id of the event that the call is now, also the name of its session."""
        path = f"{app.prefix}/call/{quote(endpoint.name, safe='')}"
        call = asyncio.ensure_future(self._as_user(lambda: self._http.post(path, {"data": data}, clock), clock))
        try:
            return _event_of(await asyncio.shield(call))
        except asyncio.CancelledError:
            # The app may have it by now, and would go through with it.
            self._later(self._cancel_call(app, endpoint, call))
            raise

    async def _cancel_call(self, app: App, endpoint: AppEndpoint, call: asyncio.Future[Any]) -> None:
        with suppress(EngineError):
            await self._cancel(app, endpoint, _event_of(await call))

    async def _cancel(self, app: App, endpoint: AppEndpoint, event: str) -> None:
        body = {"session_hash": event, "fn_index": endpoint.number, "event_id": event}
        clock = Clock(CANCEL_SECONDS, CANCEL_SECONDS, CANCEL_SECONDS)
        with suppress(EngineError):
            await self._http.post(f"{app.prefix}/cancel", body, clock)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def _as_user(self, ask: Callable[[], Awaitable[T]], clock: Clock) -> T:
        """Asks, and asks again after a login where the app has a user's page and has forgotten us.

        Raises:
            EngineError: as `ask`; or the login was refused.
        """
        logins = self._logins
        try:
            return await ask()
        except EngineError as error:
            credential = self._endpoint.credential
            user, colon, password = ("" if credential is None else credential.read()).partition(":")
            if not (colon and error.code == "server_refused" and error.raw.startswith(str(UNAUTHORIZED))):
                raise
        async with self._logging_in:
            if self._logins == logins:
                try:
                    await self._http.post_form("/login", {"username": user, "password": password}, clock)
                except EngineError as error:
                    raise error if error.disposition is not FINAL else classify_status(UNAUTHORIZED, "") from None
                self._logins += 1
        return await ask()


class _Rewritten(Exception):
    """The text does not begin with what was told of it."""


class _Answer:
    """The answer so far. Each message has all of it; `whole` tells it only when it is complete."""

    def __init__(self, endpoint: AppEndpoint, *, whole: bool, prompt: list[Any]) -> None:
        self.endpoint = endpoint
        self._whole = whole
        self._prompt_tokens = tokens_in("".join(value for value in prompt if isinstance(value, str)))
        self._told = ""

    def chunk(self, message: dict[str, Any], *, last: bool) -> Chunk:
        """
        Raises:
            ValueError: the message is none of Gradio's.
            EngineError: the app failed.
        """
        output = message.get("output")
        if not isinstance(output, dict):
            raise ValueError("a message without output")
        if not message.get("success"):
            raise app_error(output.get("error"))
        if not output and last:
            raise EngineError("stream_cancelled", "The app cancelled the call.", RETRY)
        if self._whole and not last:
            return Chunk([], [])
        text = self.endpoint.text(output.get("data"))
        if not text.startswith(self._told):
            raise _Rewritten
        added = text[len(self._told) :]
        tokens = tokens_in(text) - tokens_in(self._told)
        self._told = text
        return Chunk(
            [added],
            ["stop" if last else None],
            self._prompt_tokens if last else None,
            [tokens],
            final=last,
            size=len(added),
            estimated=True,
        )


class _Progress:
    """What the messages of a call say about where it is, and thereby set its clock to."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queued = True

    def has_part(self, message: Any) -> bool:
        """Whether the message has a part of the answer.

        Raises:
            EngineError: the app says that it has lost the call, or stops.
        """
        match message.get("msg") if isinstance(message, dict) else None:
            case "process_generating" | "process_streaming" | "process_completed":
                self._clock.progress()
                return True
            case "progress":
                self._clock.progress()
            case "process_starts":
                self._queued = False
                self._clock.queued()
            case "estimation" | "heartbeat" if self._queued:
                self._clock.queued(QUEUE_SECONDS)
            case "unexpected_error":
                raise EngineError(
                    "server_died", "The app stopped, or restarted, while the generation ran.", RETRY, server_fault=True
                )
            case None:
                raise cannot_be_read("a message of no kind")
        return False


def _event_of(answer: Any) -> str:
    event = answer.get("event_id") if isinstance(answer, dict) else None
    if not isinstance(event, str) or not event:
        raise cannot_be_read("a call without an id")
    return event
