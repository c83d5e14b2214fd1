"""One Triton server, by its gRPC endpoint. What its errors mean stands in faults.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Self

import grpc
from pydantic_core import from_json
from tritonclient.grpc import InferResult
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from app.triton.codec import Delta, decode, encode, is_final
from app.triton.embedding import embedding_contract
from app.triton.faults import (
    FINAL,
    MAX_MESSAGE_BYTES,
    RETRY,
    TritonError,
    classify_rpc,
    classify_text,
    classify_unary,
    presentable,
)
from app.triton.sampling import EMBED

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A server that comes back is found within a second or two, not after two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    # This is also the time a connection may take to be made; a host on another continent needs a second.
    ("grpc.min_reconnect_backoff_ms", 5000),
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


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model as one server's repository index tells it; `state` is ready, loading or unavailable."""

    name: str
    version: str
    state: str
    reason: str


# A server that has sent its last message ends the stream within milliseconds, under load within a tenth of a second.
LAST_READ_SECONDS = 2.0
NOT_AN_EMBEDDER = (
    "The model does not embed: one text input and one FP32 or FP16 vector output are needed, or vLLM with an embedding "
    "model."
)
SIMULATED = "No model answers here but a simulation, and its texts mean nothing; the server's log says why."
# An output of this name, which is never sent, is how the local backend says so.
SIMULATION_OUTPUT = "simulation"
_STATES = {"READY": "ready", "LOADING": "loading"}


class TritonClient:
    """One server's gRPC endpoint, `host:port`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = self._connect()
        self._ending: set[asyncio.Task[None]] = set()
        # Whether a simulation answers, of the models that are ready; asked once.
        self._simulated: dict[tuple[str, str], bool] = {}

    def _connect(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.url, channel_args=CHANNEL_OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)
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
            raise classify_unary(error) from None
        # A model of the repository that was never asked for has no state.
        models = [m for m in index.models if m.state]
        simulated = await self._ask_simulated({(m.name, m.version) for m in models if m.state == "READY"}, timeout)
        return [
            ModelState(
                m.name,
                m.version,
                _STATES.get(m.state, "unavailable"),
                SIMULATED if (m.name, m.version) in simulated else presentable(m.reason) if m.reason else "",
            )
            for m in models
        ]

    async def _ask_simulated(self, ready: set[tuple[str, str]], timeout: float) -> set[tuple[str, str]]:
        """Those of the ready models behind which there is a simulation; one that does not tell is asked again later."""

        async def ask(model: tuple[str, str]) -> None:
            with suppress(InferenceServerException):
                metadata = await self._client.get_model_metadata(*model, client_timeout=timeout)
                self._simulated[model] = any(output.name == SIMULATION_OUTPUT for output in metadata.outputs)

        self._simulated = {model: told for model, told in self._simulated.items() if model in ready}
        await asyncio.gather(*(ask(model) for model in ready - self._simulated.keys()))
        return {model for model, told in self._simulated.items() if told}

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
            raise classify_unary(error) from None
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

        With the task `embed`, the texts are vectors in base64.

        Closing the iterator, or cancelling the task that reads it, stops the engine. Timeouts in seconds:
        `idle_timeout` between messages, `run_timeout` for the whole.

        Raises:
            TritonError: the generation did not end with an answer.
        """
        if parameters.get("task") == EMBED:
            async for delta in self._embed(model, prompt, request_id, idle_timeout, run_timeout):
                yield delta
            return
        request = {"model_name": model, "inputs": encode(prompt, parameters), "request_id": request_id}
        async with aclosing(self._messages(request, idle_timeout, run_timeout)) as messages:
            async for result in messages:
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

    async def _embed(
        self, model: str, prompt: str, request_id: str, idle_timeout: float, run_timeout: float
    ) -> AsyncGenerator[Delta]:
        """The vectors of the texts in the JSON array `prompt`, all in the last message; those before show progress."""
        try:
            answer = await self._client.get_model_config(model, as_json=True, client_timeout=idle_timeout)
        except InferenceServerException as error:
            raise classify_unary(error) from None
        texts: list[str] = from_json(prompt)
        vectors: list[str] = []
        tokens = None
        try:
            contract = embedding_contract(answer["config"])
        except ValueError as other:
            raise TritonError("not_supported_by_model", NOT_AN_EMBEDDER, FINAL, raw=str(other)) from None
        deadline = asyncio.get_running_loop().time() + run_timeout
        for start in range(0, len(texts), contract.batch):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise TritonError("run_timeout", "The embedding took longer than one attempt may.", RETRY)
            part = texts[start : start + contract.batch]
            request = {"model_name": model, "inputs": contract.encode(part), "request_id": request_id}
            async with aclosing(self._messages(request, idle_timeout, left)) as messages:
                result = await anext(messages)
            try:
                found, counted = contract.decode(result, len(part))
            except ValueError as malformed:
                raise TritonError(
                    "model_contract", "The model's answer is not one vector a text.", FINAL, raw=str(malformed)
                ) from None
            vectors += found
            tokens = tokens if counted is None else (tokens or 0) + counted
            yield Delta([], [], size=sum(map(len, found)))
        yield Delta(vectors, ["stop"] * len(vectors), tokens, [0], final=True)

    async def _messages(
        self, request: dict[str, Any], idle_timeout: float, run_timeout: float
    ) -> AsyncGenerator[InferResult]:
        """The messages of one request on a stream of its own, which is cancelled when the iterator is closed early.

        Raises:
            TritonError: an error instead of a message, or the end of the stream.
        """

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield request

        stream = self._client.stream_infer(requests(), stream_timeout=run_timeout)
        said_all = False
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
                said_all = error is not None or is_final(result)
                if error is not None:
                    raise classify_text(error.message() or "")
                yield result
        finally:
            if said_all:
                self._end(stream)
            else:
                stream.cancel()

    def _end(self, stream: Any) -> None:
        """Reads a stream whose last message has come to its end, while its caller goes on.

        A cancel at this moment makes Triton keep the request for ever: its model does not unload, and the server does
        not stop, until their time-outs.
        """
        task = asyncio.create_task(_read_to_end(stream))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _read_to_end(stream: Any) -> None:
    try:
        async with asyncio.timeout(LAST_READ_SECONDS):
            async for _ in stream:
                pass
    except (TimeoutError, grpc.aio.AioRpcError):
        pass
    finally:
        stream.cancel()
