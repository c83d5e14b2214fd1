"""One Triton server, by its gRPC endpoint. What its errors mean stands in faults.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Self

from pydantic_core import from_json
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from app.engines.base import (
    FINAL,
    RETRY,
    Endpoint,
    Engine,
    EngineError,
    ModelState,
    Request,
    no_prompt_logprobs,
    presentable,
)
from app.engines.triton import llmapi
from app.engines.triton.connection import Connection
from app.engines.triton.control import TritonControl
from app.engines.triton.embedding import embedding_contract
from app.engines.triton.faults import classify_tensors, classify_text, classify_unary
from app.engines.triton.tensors import add_inputs, is_final, new_request, outputs_of
from app.engines.triton.vllm import PROMPT_LOGPROBS, decode, encode
from app.tasks.chunks import Chunk
from app.tasks.embed import EMBED
from app.tasks.generate import GENERATE
from app.tasks.infer import INFER

NOT_AN_EMBEDDER = (
    "The model does not embed: one text input and one FP32 or FP16 vector output are needed, or vLLM with an embedding "
    "model."
)
SIMULATED = "No model answers here but a simulation, and its texts mean nothing; the server's log says why."
# An output of this name, which is never sent, is how the local backend says so.
SIMULATION_OUTPUT = "simulation"
# One token of text, or else one vector.
TRIALS: tuple[tuple[str, dict[str, Any]], ...] = (("ping", {"max_tokens": 1}), ('["ping"]', {"task": EMBED}))
PYTHON = "python"
_STATES = {"READY": "ready", "LOADING": "loading"}


class TritonEngine(Engine):
    """One server's gRPC endpoint, `host:port`, for models of the vLLM backend, and any that take tensors."""

    kind = "triton"
    answers_whole = True
    takes_images = True
    queues = True

    def __init__(self, endpoint: Endpoint) -> None:
        self._address = endpoint.address
        self._connection = Connection(endpoint.address, endpoint.timeouts.connect)
        self._first_timeout = endpoint.timeouts.first_token
        # Whether a simulation answers, of the models that are ready; asked once.
        self._simulated: dict[tuple[str, str], bool] = {}
        # Of those, the ones with the contract of TensorRT-LLM's llmapi.
        self._llmapi: set[str] = set()
        # And those whose answer was one message when no stream was asked for.
        self._whole: set[str] = set()
        self._version = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def takes(self, task: str) -> bool:
        return task in (GENERATE, EMBED, INFER)

    def control(self) -> TritonControl:
        return TritonControl(self._address)

    async def close(self) -> None:
        await self._connection.close()

    async def reconnect(self) -> None:
        await self._connection.reconnect()

    async def models(self, timeout: float) -> list[ModelState]:
        """What the server has loaded, is loading, or failed to load; `timeout` in seconds.

        Raises:
            EngineError: the server does not answer.
        """
        try:
            index = await self._connection.calls.get_model_repository_index(client_timeout=timeout)
        except InferenceServerException as error:
            raise classify_unary(error) from None
        # A model of the repository that was never asked for has no state.
        models = [m for m in index.models if m.state]
        simulated = await self._ask_simulated({(m.name, m.version) for m in models if m.state == "READY"}, timeout)
        engine = await self._ask_version(timeout)
        return [
            ModelState(
                m.name,
                m.version,
                _STATES.get(m.state, "unavailable"),
                SIMULATED if (m.name, m.version) in simulated else presentable(m.reason) if m.reason else "",
                f"version {m.version}",
                engine,
            )
            for m in models
        ]

    async def _ask_version(self, timeout: float) -> str:
        """Triton's own; asked once for each connection."""
        if not self._version:
            with suppress(InferenceServerException):
                self._version = (await self._connection.calls.get_server_metadata(client_timeout=timeout)).version
        return self._version

    async def _ask_simulated(self, ready: set[tuple[str, str]], timeout: float) -> set[tuple[str, str]]:
        """Those of the ready models behind which there is a simulation; one that does not tell is asked again later."""

        async def ask(model: tuple[str, str]) -> None:
            with suppress(InferenceServerException):
                metadata = await self._connection.calls.get_model_metadata(*model, client_timeout=timeout)
                self._simulated[model] = any(output.name == SIMULATION_OUTPUT for output in metadata.outputs)
                if any(each.name == llmapi.MARK for each in metadata.inputs):
                    self._llmapi.add(model[0])

        self._simulated = {model: told for model, told in self._simulated.items() if model in ready}
        names = {name for name, _ in ready}
        self._llmapi &= names
        self._whole &= names
        await asyncio.gather(*(ask(model) for model in ready - self._simulated.keys()))
        return {model for model, told in self._simulated.items() if told}

    async def describe(self, model: str, timeout: float) -> dict[str, Any]:
        """Inputs, outputs and statistics of a loaded model.

        Raises:
            EngineError: the server does not answer or does not have the model.
        """
        try:
            metadata, statistics, answer = await asyncio.gather(
                self._connection.calls.get_model_metadata(model, as_json=True, client_timeout=timeout),
                self._connection.calls.get_inference_statistics(model, as_json=True, client_timeout=timeout),
                self._connection.calls.get_model_config(model, as_json=True, client_timeout=timeout),
            )
        except InferenceServerException as error:
            raise classify_unary(error) from None
        config = answer["config"]
        optional = {each["name"] for each in config.get("input", []) if each.get("optional")}
        return {
            "inputs": [_tensor(each) | {"optional": each["name"] in optional} for each in metadata.get("inputs", [])],
            "outputs": [_tensor(each) for each in metadata.get("outputs", [])],
            "max_batch_size": int(config.get("max_batch_size", 0)),
            "statistics": statistics.get("model_stats", []),
        }

    async def run(self, request: Request) -> AsyncGenerator[Chunk]:
        """As Engine.run, on a stream of its own. With the task `embed`, the texts are vectors in base64.

        Raises:
            EngineError: the request did not end with an answer.
        """
        if request.task == EMBED:
            async for chunk in self._embed(request):
                yield chunk
            return
        if request.task == INFER:
            async for chunk in self._infer(request):
                yield chunk
            return
        if request.model in self._llmapi:
            async for chunk in self._ask_llmapi(request):
                yield chunk
            return
        if request.parameters.get(PROMPT_LOGPROBS) is not None:
            await self._require_prompt_logprobs(request.model, request.idle_timeout)
        call = encode(
            request.model,
            request.request_id,
            request.prompt,
            request.parameters,
            stream=request.stream,
            images=request.images,
        )
        if not request.stream and request.model in self._whole:
            yield _chunk_of(await self._only_message(request.model, call, request.run_timeout))
            return
        idle, first = (request.idle_timeout, self._first_timeout) if request.stream else (None, None)
        count = 0
        async with aclosing(self._connection.messages(call, idle, request.run_timeout, first)) as messages:
            async for response in messages:
                chunk = _chunk_of(response)
                count += 1
                yield chunk
                if chunk.final:
                    break
        if not request.stream and count == 1:
            self._whole.add(request.model)

    async def _only_message(
        self, model: str, call: service_pb2.ModelInferRequest, run_timeout: float
    ) -> service_pb2.ModelInferResponse:
        try:
            return await self._connection.only_message(call, run_timeout)
        except EngineError as error:
            if error.code == "run_timeout":
                # It may have begun to send more than one.
                self._whole.discard(model)
            raise

    async def _ask_llmapi(self, request: Request) -> AsyncGenerator[Chunk]:
        call, texts = llmapi.encode(request), llmapi.Texts(request.prompt)
        idle, first = (request.idle_timeout, self._first_timeout) if request.stream else (None, None)
        async with aclosing(self._connection.messages(call, idle, request.run_timeout, first)) as messages:
            async for response in messages:
                try:
                    chunk = texts.decode(response)
                except ValueError as malformed:
                    raise EngineError(
                        "model_contract", "The model's answer is not one of llmapi.", FINAL, raw=str(malformed)
                    ) from None
                yield chunk
                if chunk.final:
                    return

    async def _require_prompt_logprobs(self, model: str, timeout: float) -> None:
        try:
            metadata = await self._connection.calls.get_model_metadata(model, client_timeout=timeout)
        except InferenceServerException as error:
            raise classify_unary(error) from None
        if all(output.name != PROMPT_LOGPROBS for output in metadata.outputs):
            raise no_prompt_logprobs("Triton's vLLM backend")

    async def _infer(self, request: Request) -> AsyncGenerator[Chunk]:
        """A chunk for each response; a decoupled model sends any number."""
        call = new_request(request.model, request.request_id)
        add_inputs(call, request.inputs or ())
        try:
            async with aclosing(
                self._connection.messages(
                    call, request.idle_timeout, request.run_timeout, self._first_timeout, classify_tensors, may_end=True
                )
            ) as messages:
                async for response in messages:
                    try:
                        outputs = outputs_of(response)
                    except ValueError as malformed:
                        raise EngineError(
                            "model_contract", "The model's answer cannot be read.", FINAL, raw=str(malformed)
                        ) from None
                    final = is_final(response)
                    yield Chunk([], [], outputs=outputs, size=sum(each.size for each in outputs), final=final)
                    if final:
                        return
            yield Chunk([], [], final=True)
        except EngineError as error:
            if error.code == "model_refused" and not await self._runs_python(request.model, request.idle_timeout):
                raise classify_text(error.raw) from None
            raise

    async def _runs_python(self, model: str, timeout: float) -> bool:
        """Whether its errors are its author's words."""
        try:
            metadata = await self._connection.calls.get_model_metadata(model, client_timeout=timeout)
        except InferenceServerException:
            return False
        return bool(metadata.platform == PYTHON)

    async def _embed(self, request: Request) -> AsyncGenerator[Chunk]:
        """The vectors of the texts in the JSON array `prompt`, all in the last chunk; those before show progress."""
        try:
            answer = await self._connection.calls.get_model_config(
                request.model, as_json=True, client_timeout=request.idle_timeout
            )
        except InferenceServerException as error:
            raise classify_unary(error) from None
        texts: list[str] = from_json(request.prompt)
        vectors: list[str] = []
        tokens = None
        try:
            contract = embedding_contract(answer["config"])
        except ValueError as other:
            raise EngineError("not_supported_by_model", NOT_AN_EMBEDDER, FINAL, raw=str(other)) from None
        deadline = asyncio.get_running_loop().time() + request.run_timeout
        for start in range(0, len(texts), contract.batch):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise EngineError("run_timeout", "The embedding took longer than one attempt may.", RETRY)
            part = texts[start : start + contract.batch]
            call = new_request(request.model, request.request_id)
            contract.encode(call, part)
            async with aclosing(
                self._connection.messages(call, request.idle_timeout, left, self._first_timeout)
            ) as messages:
                response = await anext(messages)
            try:
                found, counted = contract.decode(response, len(part))
            except ValueError as malformed:
                raise EngineError(
                    "model_contract", "The model's answer is not one vector a text.", FINAL, raw=str(malformed)
                ) from None
            vectors += found
            tokens = tokens if counted is None else (tokens or 0) + counted
            yield Chunk([], [], size=sum(map(len, found)))
        yield Chunk(vectors, ["stop"] * len(vectors), tokens, [0], final=True)

    async def ping(self, model: str, timeout: float) -> None:
        """Asks for one token, or else one vector.

        Raises:
            EngineError: what came instead.
        """
        for prompt, parameters in TRIALS:
            try:
                async with aclosing(self.run(Request(model, prompt, parameters, "trial", timeout, timeout))) as chunks:
                    async for _ in chunks:
                        pass
            except EngineError as error:
                # Triton itself refused the tensors, before the model saw them.
                if error.code != "model_contract":
                    raise
            else:
                return


def _chunk_of(response: service_pb2.ModelInferResponse) -> Chunk:
    """
    Raises:
        EngineError: the message does not fit the contract.
    """
    try:
        return decode(response)
    except ValueError as malformed:
        raise EngineError(
            "model_contract", "The model's answer is not one of the vLLM backend.", FINAL, raw=str(malformed)
        ) from None


def _tensor(described: dict[str, Any]) -> dict[str, Any]:
    """Sizes come as texts, and none at all for a tensor of one element without dimensions."""
    return {
        "name": described["name"],
        "datatype": described["datatype"],
        "shape": [int(size) for size in described.get("shape", [])],
    }
