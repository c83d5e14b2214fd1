"""One Triton server. The only importer of tritonclient's client, and the one table of its errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import grpc
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from app.triton.codec import Delta, decode, encode

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A server that comes back is found within a second or two, not after two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # An address that moved, as a restarted container's does, is asked for again soon.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # Connections of two clients to one address stay apart.
    ("grpc.use_local_subchannel_pool", 1),
    # Through a tunnel or a NAT, an idle connection that died is noticed.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class Disposition(StrEnum):
    """What an error means for the ticket."""

    RETRY = "retry"  # an attempt is spent, another may follow
    WAIT = "wait"  # the request was never accepted: no attempt is spent
    FINAL = "final"  # the same request would fail anywhere


class TritonError(Exception):
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


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table; `{detail}` in the message is what the pattern's group `detail` matched."""

    pattern: re.Pattern[str]
    code: str
    disposition: Disposition
    message: str
    server_fault: bool = False


def _rule(pattern: str, code: str, disposition: Disposition, message: str, *, fault: bool = False) -> Rule:
    return Rule(re.compile(pattern, re.DOTALL), code, disposition, message, fault)


RETRY, WAIT, FINAL = Disposition.RETRY, Disposition.WAIT, Disposition.FINAL

# In-stream errors carry no code, so their text decides. First match wins.
IN_STREAM_RULES: tuple[Rule, ...] = (
    _rule(
        r"This model's (?P<detail>maximum context length is \d+ tokens)",
        "prompt_too_long",
        FINAL,
        "The prompt is too long for the model, whose {detail}: shorten it or lower max_tokens.",
    ),
    _rule(
        r"longer than the maximum model length of (?P<detail>\d+)",
        "prompt_too_long",
        FINAL,
        "The prompt leaves no room for output in the model's context of {detail} tokens: shorten it.",
    ),
    _rule(
        r"decoder prompt cannot be empty",
        "prompt_empty",
        FINAL,
        "The model's tokenizer makes no token of this prompt: send a prompt that has text.",
    ),
    _rule(
        r"codec can't decode byte",
        "prompt_not_text",
        FINAL,
        "The engine could not read the prompt as UTF-8 text.",
    ),
    _rule(
        r"Requested (?P<detail>(?:sample|prompt) logprobs of \d+, which is greater than max allowed: \d+)",
        "invalid_parameters",
        FINAL,
        "The engine refused the sampling parameters: requested {detail}.",
    ),
    _rule(
        r"LoRA feature is not enabled",
        "lora_not_enabled",
        FINAL,
        "This model was deployed without LoRA: send the request without lora_name.",
    ),
    _rule(
        r"(?P<detail>LoRA \S+ is not supported)",
        "lora_not_found",
        FINAL,
        "The model does not have this adapter: {detail}.",
    ),
    _rule(
        r"does not support '(?P<detail>\w+)' request",
        "not_supported_by_model",
        FINAL,
        "This model cannot serve a request of the kind '{detail}'.",
    ),
    _rule(
        r"'NoneType' object has no attribute 'lora_name'|JSONDecodeError",
        "invalid_parameters",
        FINAL,
        "The engine refused the sampling parameters; its reason is only in Triton's own log.",
    ),
    _rule(
        r"Request for unknown model: '[^']*' (?:has no available versions)",
        "model_unavailable",
        WAIT,
        "The model is not loaded on the server at the moment.",
    ),
    _rule(
        r"Request for unknown model: '[^']*'.*is not found",
        "model_unavailable",
        WAIT,
        "The server does not have this model.",
    ),
    _rule(
        r"Stub process '[^']*' is not healthy",
        "model_process_died",
        WAIT,
        "The model's process on the server has died; the server must be restarted.",
        fault=True,
    ),
    _rule(
        r"EngineCore encountered an issue|EngineDeadError|unhealthy vLLM engine",
        "engine_died",
        RETRY,
        "The engine behind the model has died; the server must be restarted.",
        fault=True,
    ),
    _rule(
        r"unexpected inference input|data-type is|unexpected shape for input|inference request batch-size",
        "model_contract",
        FINAL,
        'The model does not take the inputs of the vLLM backend; deploy it with backend: "vllm".',
    ),
    _rule(
        r"exceeds maximum queue size|Exceeds maximum queue size",
        "server_full",
        WAIT,
        "The server's queue is full.",
    ),
)

# Failures of the call itself. UNAVAILABLE is told apart by its text, see classify_rpc.
RPC_RULES: dict[grpc.StatusCode, tuple[str, Disposition, str, bool]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "run_timeout",
        RETRY,
        "The generation took longer than one attempt may.",
        False,
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("server_full", WAIT, "The server is overloaded.", True),
    grpc.StatusCode.CANCELLED: ("stream_cancelled", RETRY, "The server cancelled the generation.", False),
    grpc.StatusCode.ABORTED: ("stream_aborted", RETRY, "The server aborted the generation.", False),
    grpc.StatusCode.UNKNOWN: ("server_error", RETRY, "The server failed without saying why.", True),
    grpc.StatusCode.INTERNAL: ("server_error", RETRY, "The server failed internally.", True),
    grpc.StatusCode.DATA_LOSS: ("server_error", RETRY, "The answer arrived damaged.", True),
    grpc.StatusCode.NOT_FOUND: ("model_unavailable", WAIT, "The server does not have this model.", False),
    grpc.StatusCode.FAILED_PRECONDITION: ("model_unavailable", WAIT, "The model is not ready.", False),
    grpc.StatusCode.INVALID_ARGUMENT: ("invalid_request", FINAL, "The server refused the request.", False),
    grpc.StatusCode.OUT_OF_RANGE: ("invalid_request", FINAL, "The server refused the request.", False),
    grpc.StatusCode.ALREADY_EXISTS: ("server_error", RETRY, "The server failed internally.", True),
    grpc.StatusCode.UNIMPLEMENTED: (
        "not_supported_by_model",
        FINAL,
        'The server cannot stream this model; deploy it with backend: "vllm".',
        False,
    ),
    grpc.StatusCode.UNAUTHENTICATED: ("server_refused", WAIT, "The server asks for credentials.", True),
    grpc.StatusCode.PERMISSION_DENIED: ("server_refused", WAIT, "The server denies access.", True),
}

_MESSAGE_TOO_LARGE = re.compile(r"message larger than max", re.IGNORECASE)
_NEVER_CONNECTED = re.compile(r"failed to connect|connection refused|errors resolving|lookup failed|resolution", re.I)
_EXITING = re.compile(r"Server exiting", re.I)
_PATH = re.compile(r"(?:[A-Za-z]:)?/(?:[\w.@+-]+/)+[\w.@+-]*")
_SHOWN_CHARS = 300


def classify_text(text: str) -> TritonError:
    """The error of an in-stream message."""
    for rule in IN_STREAM_RULES:
        if match := rule.pattern.search(text):
            detail = match.groupdict().get("detail") or ""
            return TritonError(
                rule.code,
                rule.message.replace("{detail}", detail),
                rule.disposition,
                server_fault=rule.server_fault,
                raw=text,
            )
    return TritonError("engine_error", f"The engine failed: {presentable(text)}", RETRY, raw=text)


def classify_rpc(status: grpc.StatusCode, details: str) -> TritonError:
    """The error of a call that failed as a whole."""
    if status is grpc.StatusCode.UNAVAILABLE:
        if _EXITING.search(details):
            return TritonError("server_draining", "The server is shutting down.", WAIT, server_fault=True)
        if _NEVER_CONNECTED.search(details):
            return TritonError(
                "server_unreachable", "The server cannot be reached.", WAIT, server_fault=True, raw=details
            )
        return TritonError(
            "server_died",
            "The connection to the server broke while the generation ran.",
            RETRY,
            server_fault=True,
            raw=details,
        )
    if _MESSAGE_TOO_LARGE.search(details):
        limit = MAX_MESSAGE_BYTES // 1024 // 1024
        return TritonError(
            "message_too_large", f"The request or its answer is larger than {limit} MiB.", FINAL, raw=details
        )
    code, disposition, message, fault = RPC_RULES.get(status, ("server_error", RETRY, "The server failed.", True))
    return TritonError(code, message, disposition, server_fault=fault, raw=details)


def presentable(text: str) -> str:
    """The first line of a foreign message, without paths and not too long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    line = _PATH.sub("…", line.removeprefix("Error generating stream: "))
    return line if len(line) <= _SHOWN_CHARS else line[: _SHOWN_CHARS - 1] + "…"


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model as one server's repository index tells it; `state` is ready, loading or unavailable."""

    name: str
    version: str
    state: str
    reason: str


_STATES = {"READY": "ready", "LOADING": "loading"}


class TritonClient:
    """One server's gRPC endpoint, `host:port`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = self._connect()

    def _connect(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.url, channel_args=CHANNEL_OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()

    async def reconnect(self) -> None:
        """Starts over with a new channel: the old one may sit out a backoff of minutes after failed look-ups.

        Whatever is in flight on the old channel is lost.
        """
        old, self._client = self._client, self._connect()
        await old.close()

    async def models(self, timeout: float) -> list[ModelState]:
        """What the server has loaded, is loading, or failed to load; `timeout` in seconds.

        Raises:
            TritonError: the server does not answer.
        """
        try:
            index = await self._client.get_model_repository_index(client_timeout=timeout)
        except InferenceServerException as error:
            raise _from_unary(error) from None
        # A model of the repository that was never asked for has no state.
        return [
            ModelState(
                m.name,
                m.version,
                _STATES.get(m.state, "unavailable"),
                presentable(m.reason) if m.reason else "",
            )
            for m in index.models
            if m.state
        ]

    async def describe(self, model: str, timeout: float) -> dict[str, Any]:
        """Inputs, outputs and statistics of a loaded model.

        Raises:
            TritonError: the server does not answer or does not have the model.
        """
        try:
            metadata, statistics = await asyncio.gather(
                self._client.get_model_metadata(model, as_json=True, client_timeout=timeout),
                self._client.get_inference_statistics(model, as_json=True, client_timeout=timeout),
            )
        except InferenceServerException as error:
            raise _from_unary(error) from None
        return {
            "inputs": metadata.get("inputs", []),
            "outputs": metadata.get("outputs", []),
            "statistics": statistics.get("model_stats", []),
        }

    async def generate(
        self,
        model: str,
        prompt: str,
        parameters: dict[str, Any],
        *,
        request_id: str,
        idle_timeout: float,
        run_timeout: float,
    ) -> AsyncGenerator[Delta]:
        """Runs one generation on a stream of its own; yields its messages, the last one `final`.

        Closing the iterator, or cancelling the task that reads it, stops the engine. Timeouts in seconds:
        `idle_timeout` between messages, `run_timeout` for the whole.

        Raises:
            TritonError: the generation did not end with an answer.
        """
        request = {"model_name": model, "inputs": encode(prompt, parameters), "request_id": request_id}

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield request

        stream = self._client.stream_infer(requests(), stream_timeout=run_timeout)
        try:
            while True:
                try:
                    async with asyncio.timeout(idle_timeout):
                        result, error = await anext(stream)
                except StopAsyncIteration:
                    raise TritonError(
                        "stream_ended", "The server ended the stream before the answer was complete.", RETRY
                    ) from None
                except TimeoutError:
                    raise TritonError(
                        "idle_timeout",
                        f"The engine sent nothing for {idle_timeout:g} seconds.",
                        RETRY,
                        server_fault=True,
                    ) from None
                except grpc.aio.AioRpcError as failed:
                    raise classify_rpc(failed.code(), failed.details() or "") from None
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise
                    # An error inside the request iterator shows up as a cancel nobody asked for.
                    raise TritonError("request_not_sent", "The request could not be put on the wire.", RETRY) from None
                if error is not None:
                    raise classify_text(error.message() or "")
                try:
                    delta = decode(result)
                except ValueError as malformed:
                    raise TritonError(
                        "model_contract",
                        "The model's answer is not one of the vLLM backend.",
                        FINAL,
                        raw=str(malformed),
                    ) from None
                yield delta
                if delta.final:
                    return
        finally:
            stream.cancel()


def _from_unary(error: InferenceServerException) -> TritonError:
    """The error of a question about the server's state: no generation is in flight on such a call."""
    name = (error.status() or "").removeprefix("StatusCode.")
    status = getattr(grpc.StatusCode, name, grpc.StatusCode.UNKNOWN)
    details = error.message() or ""
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TritonError("server_unreachable", "The server does not answer.", WAIT, server_fault=True, raw=details)
    if status is grpc.StatusCode.UNAVAILABLE and not _EXITING.search(details):
        return TritonError("server_unreachable", "The server cannot be reached.", WAIT, server_fault=True, raw=details)
    return classify_rpc(status, details)
