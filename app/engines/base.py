"""What every engine can be asked, and what its faults mean for a ticket. An engine is one server's model runner."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from app.tasks import task_of
from app.tasks.chunks import Chunk


class Disposition(StrEnum):
    """What an error means for the ticket."""

    RETRY = "retry"  # an attempt is spent, another may follow
    WAIT = "wait"  # the request was never accepted: no attempt is spent
    FINAL = "final"  # the same request would fail anywhere


RETRY, WAIT, FINAL = Disposition.RETRY, Disposition.WAIT, Disposition.FINAL

# The code of an error of an engine that no rule knows.
UNKNOWN = "engine_error"
# What says that a model's process or engine is dead while the server still calls itself ready.
DEAD_CODES = frozenset({"model_process_died", "engine_died"})
GONE_CODES = frozenset({"server_unreachable", "server_died", "server_draining"})

_PATH = re.compile(r"(?:[A-Za-z]:)?/(?:[\w.@+-]+/)+[\w.@+-]*")
_SHOWN_CHARS = 300
MAX_SECRET_CHARS = 8192


class EngineError(Exception):
    """A request that did not end with an answer.

    `message` is a sentence for the user. `server_fault` says that the server, not the request, is in trouble.
    """

    def __init__(
        self, code: str, message: str, disposition: Disposition, *, server_fault: bool = False, raw: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.disposition = disposition
        self.server_fault = server_fault
        self.raw = raw
        # Seconds after which the server wants to be asked again, where it says so.
        self.retry_after: float | None = None


def no_prompt_logprobs(who: str) -> EngineError:
    return EngineError(
        "not_supported_by_model",
        f"{who} returns no log probabilities of the prompt: leave out prompt_logprobs, or echo beside logprobs. vLLM's "
        "own server (a server of the kind openai) returns them, and so does the local engine that runs a real model.",
        FINAL,
    )


class NotLoaded(EngineError):
    """A model that could not be loaded or unloaded; `refused` says that the server takes no such orders."""

    def __init__(self, message: str, *, raw: str, refused: bool = False) -> None:
        super().__init__("not_loaded", message, FINAL, raw=raw)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Timeouts:
    """A server's own, in seconds; None where the service's hold."""

    connect: float | None = None
    first_token: float | None = None
    between_tokens: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """Where a secret is kept, `env:NAME` or `file:PATH`. It is read for each request, and never shown.

    A file lies below `directory`, symbolic links followed; its path may be relative to that.
    """

    reference: str
    directory: Path = Path("/run/secrets")

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: it is neither.
        """
        kind, _, place = self.reference.partition(":")
        if kind not in ("env", "file") or not place:
            raise ValueError("a credential is env:NAME or file:PATH, never the secret itself")

    def require_file(self) -> None:
        """
        Raises:
            ValueError: it is a file elsewhere.
        """
        kind, _, place = self.reference.partition(":")
        if kind == "file":
            self._file(place)

    def _file(self, place: str) -> Path:
        path = (self.directory / place).resolve()
        if not path.is_relative_to(self.directory.resolve()):
            raise ValueError(f"the file must lie in {self.directory}, which is CREDENTIAL_DIRECTORY")
        return path

    def read(self) -> str:
        """
        Raises:
            EngineError: it is not there.
        """
        kind, _, place = self.reference.partition(":")
        try:
            secret = os.environ.get(place, "") if kind == "env" else self._file(place).read_text("utf-8")
        except (OSError, ValueError):
            secret = ""
        secret = secret[:MAX_SECRET_CHARS].strip()
        if not secret or not (secret.isascii() and secret.isprintable()):
            file = "the file that the server's entry names, or that lies outside CREDENTIAL_DIRECTORY"
            where = f"the environment variable {place}" if kind == "env" else file
            raise EngineError(
                "server_refused",
                f"The credential of this server is not in {where}. The administrator of this service has to mend that.",
                WAIT,
                server_fault=True,
            )
        return secret


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine is reached: the address is of the form that its kind takes."""

    kind: str
    address: str
    timeouts: Timeouts = Timeouts()
    credential: Credential | None = None

    def authorization(self, *, basic: bool = False) -> dict[str, str]:
        """The header that says who asks: a bearer token, or with `basic` a user and a password where it has both.

        Raises:
            EngineError: the credential is not there.
        """
        if self.credential is None:
            return {}
        secret = self.credential.read()
        if basic and ":" in secret:
            return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
        return {"Authorization": f"Bearer {secret}"}


@dataclass(slots=True)
class Request:
    """One generation, embedding or inference. Timeouts in seconds: between two chunks, and for the whole."""

    model: str
    prompt: str
    parameters: dict[str, Any]
    request_id: str
    idle_timeout: float
    run_timeout: float
    # Of a chat: its messages, and the rest of the request, in OpenAI's words.
    messages: list[dict[str, Any]] | None = None
    asked: dict[str, Any] | None = None
    # Of the task `infer`: tensors, as a context stores them.
    inputs: list[dict[str, Any]] | None = None
    # Whether a text is wanted as it is generated. If not, and the engine can, it comes whole: then only `run_timeout`
    # bounds the wait.
    stream: bool = True
    # Filled by an engine that asks for other parameters than those above, or by other names.
    sent: dict[str, Any] = field(default_factory=dict)
    # Beside the prompt, each in base64.
    images: list[str] = field(default_factory=list)

    @property
    def task(self) -> str:
        return task_of(self.parameters)


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model as one server tells it; `state` is ready, loading or unavailable.

    `revision` says which files or weights it is, `engine` which version runs it; they are empty where it tells none.
    """

    name: str
    version: str
    state: str
    reason: str
    revision: str = ""
    engine: str = ""


class Control(Protocol):
    """Loads and unloads models; timeouts in seconds."""

    async def names(self, timeout: float) -> list[str]:
        """All models that may be loaded, by the names that the other calls take.

        Raises:
            EngineError: the server does not answer.
        """

    async def taken(self, model: str, timeout: float) -> int:
        """How many requests the model's process has taken since it was loaded, from whomever.

        Raises:
            EngineError: the server does not tell.
        """

    async def unload(self, model: str, timeout: float, patience: float) -> bool:
        """Unloads a model and waits until it is gone; False where that takes longer than `patience` seconds.

        Raises:
            EngineError: the server does not answer, or takes no such order.
        """

    async def load(self, model: str, timeout: float) -> None:
        """Loads a model and returns when it is ready.

        Raises:
            EngineError: it could not be loaded, or the server takes no such order.
        """


class Engine(Protocol):
    """One server, spoken to in the words of its `kind`. It connects on first use. Timeouts in seconds."""

    kind: str
    # Whether a chat is sent to it as messages, and rendered with the model's template by the server itself.
    takes_messages: bool = False
    # Whether a text can be had whole, in one message, and leaving the request stops its generation all the same.
    answers_whole: bool = False
    # Whether images may come beside a prompt.
    takes_images: bool = False
    # Whether a request beyond those it works on waits in it and is begun the moment that another ends.
    queues: bool = False

    def takes(self, task: str) -> bool:
        """Whether requests of this task may be sent to it."""

    async def models(self, timeout: float) -> list[ModelState]:
        """What the server has loaded, is loading, or failed to load. It is asked every few seconds.

        Raises:
            EngineError: the server does not answer.
        """

    async def describe(self, model: str, timeout: float) -> dict[str, Any]:
        """`inputs`, `outputs` and `statistics` of a loaded model, lists of objects, empty where it tells none.

        A model that takes tensors says of each input whether it is `optional`, and has a `max_batch_size`.

        Raises:
            EngineError: the server does not answer or does not have the model.
        """

    def run(self, request: Request) -> AsyncGenerator[Chunk]:
        """Yields the answer's chunks, the last one `final`.

        Closing the iterator, or cancelling the task that reads it, stops the engine.

        Raises:
            EngineError: the request did not end with an answer.
        """

    async def ping(self, model: str, timeout: float) -> None:
        """Asks a model for as little as can be, to see that it answers.

        Raises:
            EngineError: what came instead. A FINAL one means that the model is alive but refuses what it was asked.
        """

    async def reconnect(self) -> None:
        """Starts over with a new connection; whatever is in flight on the old one is lost."""

    async def close(self) -> None:
        """Once closed, it is not used again."""

    def control(self) -> AbstractAsyncContextManager[Control] | None:
        """A connection of its own that gives orders to load models; None where this kind takes none."""


def refusal(error: EngineError) -> EngineError:
    """What an unknown error is when the same request meets it again while the engine answers others."""
    return EngineError(
        "request_refused",
        sentence(f"The engine fails on this request, and answers others: {presentable(error.raw)}"),
        FINAL,
        raw=error.raw,
    )


def presentable(text: str) -> str:
    """The first line of a foreign message, without paths and not too long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    line = _PATH.sub("…", line.removeprefix("Error generating stream: "))
    return line if len(line) <= _SHOWN_CHARS else line[: _SHOWN_CHARS - 1] + "…"


def sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
