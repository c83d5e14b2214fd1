"""One server: answers, and what each of its errors becomes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from app.engines.base import Disposition, Endpoint, EngineError, Request, presentable, refusal
from app.engines.triton.client import SIMULATED, TritonEngine
from app.engines.triton.faults import RPC_RULES, classify_rpc, classify_text
from app.engines.triton.tensors import texts_content
from app.tasks.chunks import Accumulator
from nvidia_triton.local.settings import free_ports
from tests.engine import busy
from tests.servers import RunningTriton, start_triton
from tests.service import eventually

RETRY, WAIT, FINAL = Disposition.RETRY, Disposition.WAIT, Disposition.FINAL
Code = grpc.StatusCode


@pytest.fixture
async def client(triton: RunningTriton) -> AsyncIterator[TritonEngine]:
    async with TritonEngine(Endpoint("triton", triton.grpc_url)) as opened:
        yield opened


async def run(
    client: TritonEngine,
    prompt: str = "Hello there.",
    model: str = "tiny",
    *,
    idle: float = 10,
    total: float = 30,
    stream: bool = True,
    **p: object,
) -> Accumulator:
    answer = Accumulator()
    request = Request(model, prompt, {"max_tokens": 8, **p}, "test", idle, total, stream=stream)
    async with aclosing(client.run(request)) as chunks:
        async for chunk in chunks:
            answer.add(chunk)
    return answer


async def error_of(client: TritonEngine, prompt: str = "Hello there.", model: str = "tiny", **p: object) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await run(client, prompt, model, **p)  # type: ignore[arg-type]
    return caught.value


async def test_an_answer_adds_up_over_its_messages(client: TritonEngine) -> None:
    answer = await run(client, max_tokens=20, ignore_eos=True)
    assert answer.finished
    assert answer.finish_reasons == ["length"]
    assert answer.completion_tokens == 20
    assert answer.prompt_tokens is not None
    assert answer.joined()[0].startswith("[simulated]")


async def test_characters_split_over_messages_come_back_whole(client: TritonEngine) -> None:
    text = "naïve 🙂🙃 日本語"
    answer = await run(client, f"[[sim:chunk=1]][[sim:emit={text}]]", max_tokens=200)
    assert answer.joined() == [text]


@pytest.mark.parametrize(
    ("prompt", "parameters", "code", "disposition", "word"),
    [
        ("word " * 400, {}, "prompt_too_long", FINAL, "256"),
        ("", {}, "prompt_empty", FINAL, "prompt"),
        ("x", {"temperature": -1}, "invalid_parameters", FINAL, "log"),
        ("x", {"no_such": 1}, "invalid_parameters", FINAL, "log"),
        ("x", {"logprobs": 999}, "invalid_parameters", FINAL, "max allowed: 20"),
        ("x", {"logit_bias": {"42": 5}}, "invalid_parameters", FINAL, "logit_bias"),
        ("x", {"lora_name": "a"}, "lora_not_enabled", FINAL, "LoRA"),
        ("[[sim:error=CUDA out of memory]]", {}, "engine_error", RETRY, "CUDA out of memory"),
        ("[[sim:error=Bad /opt/tritonserver/backends/vllm/model.py line 3]]", {}, "engine_error", RETRY, "Bad … line"),
    ],
)
async def test_an_error_of_the_engine_becomes_a_code_and_a_sentence(
    client: TritonEngine, prompt: str, parameters: dict[str, object], code: str, disposition: Disposition, word: str
) -> None:
    # From the second one on, answers that come whole are read another way.
    await run(client, stream=False)
    for stream in (True, False):
        error = await error_of(client, prompt, stream=stream, **parameters)
        assert (error.code, error.disposition) == (code, disposition)
        assert word in error.message
        assert "/opt" not in error.message


async def test_an_unknown_adapter(client: TritonEngine) -> None:
    error = await error_of(client, model="lora", lora_name="nobody")
    assert (error.code, error.disposition) == ("lora_not_found", FINAL)


async def test_an_unknown_model_waits(client: TritonEngine) -> None:
    error = await error_of(client, model="nobody")
    assert (error.code, error.disposition) == ("model_unavailable", WAIT)


TEXTS = [
    ("Error generating stream: 'NoneType' object has no attribute 'lora_name'", "invalid_parameters", FINAL),
    ("Failed to process the request(s) for model 'M_0_0', message: JSONDecodeError: x", "invalid_parameters", FINAL),
    (
        "Error generating stream: This model's maximum context length is 256 tokens. However, you requested 0 output"
        " tokens and your prompt contains at least 257 input tokens, (parameter=input_tokens, value=257)",
        "prompt_too_long",
        FINAL,
    ),
    (
        "Error generating stream: The decoder prompt (length 256) plus the number of requested output tokens"
        " (at least 1) is longer than the maximum model length of 256. Make sure",
        "prompt_too_long",
        FINAL,
    ),
    ("Error generating stream: The decoder prompt cannot be empty", "prompt_empty", FINAL),
    (
        "Error generating stream: 'utf-8' codec can't decode byte 0xff in position 3: invalid start byte",
        "prompt_not_text",
        FINAL,
    ),
    (
        "Error generating stream: Requested sample logprobs of 999, which is greater than max allowed: 20"
        " (parameter=logprobs, value=999)",
        "invalid_parameters",
        FINAL,
    ),
    (
        "Error generating stream: '<' not supported between instances of 'str' and 'int'",
        "invalid_parameters",
        FINAL,
    ),
    *(
        (f"Error generating stream: {text}", "invalid_parameters", FINAL)
        for text in (
            "Grammar error: at 1(7): unexpected token\n  context: ...",
            "Grammar error: Pointer '/$defs/nowhere' does not exist",
            "Invalid grammar specification: EBNF parser error at line 1",
            "Invalid grammar specification.",
            "Invalid JSON grammar specification.",
            "Failed to transform regex into a grammar: unmatched parenthesis",
            "Failed to transform json schema into a grammar: Cannot find field nowhere",
            "The provided JSON schema contains features not supported by xgrammar.",
            "token_id(s) [999999] in stop_token_ids contain out-of-vocab token ids. Vocabulary size: 151936",
            "allowed_token_ids contains out-of-vocab token id!",
            "token_id(s) [999999] in logit_bias contain out-of-vocab token ids. Vocabulary size: 151936",
            "The local engine, llama.cpp, does not support bad_words.",
            "something of this version is too large. (parameter=something, value=9)",
        )
    ),
    ("LoRA feature is not enabled.", "lora_not_enabled", FINAL),
    ("LoRA X is not supported, we currently support ['a']", "lora_not_found", FINAL),
    ("Error generating stream: Model M does not support 'embed' request", "not_supported_by_model", FINAL),
    ("Request for unknown model: 'M' is not found", "model_unavailable", WAIT),
    ("Request for unknown model: 'M' has no available versions", "model_unavailable", WAIT),
    ("Request for unknown model: 'M' version 7 is not found", "model_unavailable", WAIT),
    ("unexpected inference input 'x' for model 'M'", "model_contract", FINAL),
    (
        "[request id: 1] inference input 'stream' data-type is 'INT32', but model 'M' expects 'BOOL'",
        "model_contract",
        FINAL,
    ),
    ("[request id: 1] unexpected shape for input 'text_input' for model 'M'", "model_contract", FINAL),
    ("Stub process 'M_0_0' is not healthy.", "model_process_died", WAIT),
    (
        "Error generating stream: EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "engine_died",
        RETRY,
    ),
    ("Model is unavailable due to unhealthy vLLM engine", "engine_died", RETRY),
]


@pytest.mark.parametrize(("text", "code", "disposition"), TEXTS)
def test_every_error_text_of_the_contract_is_classified(text: str, code: str, disposition: Disposition) -> None:
    error = classify_text(text)
    assert (error.code, error.disposition) == (code, disposition)
    assert error.message.endswith((".", "…"))
    assert ".." not in error.message
    assert "M_0_0" not in error.message
    assert "NoneType" not in error.message


@pytest.mark.parametrize(
    "text", ["Error generating stream: out of luck", "Error generating stream: Why?", "", "x" * 999]
)
def test_an_unknown_error_is_a_sentence_too(text: str) -> None:
    for error in (classify_text(text), refusal(classify_text(text))):
        assert error.message.endswith((".", "?", "…"))
        assert error.raw == text
    assert classify_text(text).disposition is RETRY
    assert refusal(classify_text(text)).disposition is FINAL


def test_every_grpc_status_is_classified() -> None:
    for status in Code:
        if status in (Code.OK, Code.UNAVAILABLE):
            continue
        assert status in RPC_RULES, status
        assert classify_rpc(status, "").message.endswith(".")


@pytest.mark.parametrize(
    ("details", "code", "disposition"),
    [
        ("failed to connect to all addresses; last error: connection refused", "server_unreachable", WAIT),
        (
            "errors resolving a:1: [field:hostname lookup error:address lookup failed for a:1: Domain name not found]",
            "server_unreachable",
            WAIT,
        ),
        ("Server exiting", "server_draining", WAIT),
        ("Stream removed (Socket closed)", "server_died", RETRY),
    ],
)
def test_unavailable_is_told_apart_by_its_text(details: str, code: str, disposition: Disposition) -> None:
    error = classify_rpc(Code.UNAVAILABLE, details)
    assert (error.code, error.disposition, error.server_fault) == (code, disposition, True)


def test_foreign_messages_are_made_presentable() -> None:
    assert presentable("\n  first line\nTraceback (most recent call last):\n  File x") == "first line"
    assert presentable("in /opt/vllm/engine.py: bad") == "in …: bad"
    assert len(presentable("x" * 5000)) <= 300
    assert presentable("") == "no reason given"


async def test_without_a_stream_the_answer_is_one_message_and_only_the_whole_is_bounded(client: TritonEngine) -> None:
    parameters = {"max_tokens": 40, "seed": 3, "ignore_eos": True, "logprobs": 1}
    request = Request("tiny", "[[sim:slow=10]] Hello.", parameters, "test", 0.1, 30)
    streamed = await run(client, request.prompt, **parameters)
    for _ in range(2):
        async with aclosing(client.run(replace(request, stream=False))) as chunks:
            (chunk,) = [chunk async for chunk in chunks]
        assert chunk.final
        assert chunk.texts == streamed.joined()
        assert (sum(chunk.completion_tokens), chunk.prompt_tokens) == (40, streamed.prompt_tokens)
        assert chunk.logprobs == streamed.logprobs
    for _ in range(2):
        async with aclosing(client.run(replace(request, stream=False, run_timeout=0.2))) as chunks:
            with pytest.raises(EngineError) as caught:
                await anext(chunks)
        assert (caught.value.code, caught.value.disposition) == ("run_timeout", RETRY)


class Unsteady(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers a first request in one message, and later ones in two."""

    def __init__(self) -> None:
        self.asked = 0

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            self.asked += 1
            for last in (False, True) if self.asked > 1 else (True,):
                answer = service_pb2.ModelInferResponse()
                answer.outputs.add(name="text_output", datatype="BYTES", shape=[1])
                answer.raw_output_contents.append(texts_content(b"word"))
                answer.parameters["triton_final_response"].bool_param = last
                yield service_pb2.ModelStreamInferResponse(infer_response=answer)


async def test_a_model_that_begins_to_stream_unasked_is_read_as_a_stream_again() -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Unsteady(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with TritonEngine(Endpoint("triton", f"127.0.0.1:{port}")) as client:
            assert (await run(client, stream=False)).joined() == ["word"]
            with pytest.raises(EngineError) as caught:
                await run(client, stream=False, total=0.3)
            assert caught.value.code == "run_timeout"
            assert (await run(client, stream=False)).joined() == ["wordword"]
    finally:
        await server.stop(None)


async def test_silence_beyond_the_idle_timeout_is_an_error(client: TritonEngine) -> None:
    with pytest.raises(EngineError) as caught:
        await run(client, "[[sim:hang]]", idle=0.4)
    assert (caught.value.code, caught.value.disposition) == ("idle_timeout", RETRY)


async def test_a_run_longer_than_its_timeout_is_an_error(client: TritonEngine) -> None:
    with pytest.raises(EngineError) as caught:
        await run(client, "[[sim:slow=50]]", total=0.5, max_tokens=200, ignore_eos=True)
    assert (caught.value.code, caught.value.disposition) == ("run_timeout", RETRY)


@pytest.mark.parametrize("how", ["cancel", "close", "cancel what comes whole"])
async def test_leaving_a_generation_frees_the_engine(client: TritonEngine, triton: RunningTriton, how: str) -> None:
    stream = how != "cancel what comes whole"
    if not stream:
        await run(client, model="slow", stream=False, max_tokens=1)
    asked = Request("slow", "go on", {"max_tokens": 4000, "ignore_eos": True}, "r", 10, 60, stream=stream)
    generation = client.run(asked)

    async def started() -> bool:
        return await busy(triton, "slow") == 1

    if how == "close":
        await anext(generation)
        # Its server's metrics may be a moment behind the first token.
        await eventually(started, "the engine runs it")
        await generation.aclose()
    else:

        async def consume() -> None:
            async with aclosing(generation):
                async for _ in generation:
                    pass

        task = asyncio.create_task(consume())
        await eventually(started, "the engine runs it")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def free() -> bool:
        return await busy(triton, "slow") == 0

    await eventually(free, "the engine is free", 3)


async def test_a_server_that_is_not_there_waits() -> None:
    (port,) = free_ports(1)
    async with TritonEngine(Endpoint("triton", f"127.0.0.1:{port}")) as client:
        error = await error_of(client)
        assert (error.code, error.disposition) == ("server_unreachable", WAIT)
        with pytest.raises(EngineError) as caught:
            await client.models(2)
        assert caught.value.code == "server_unreachable"


async def test_a_name_that_does_not_resolve_waits() -> None:
    async with TritonEngine(Endpoint("triton", "no-such-host.invalid:8001")) as client:
        error = await error_of(client)
        assert (error.code, error.disposition) == ("server_unreachable", WAIT)


async def test_a_server_that_dies_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    victim = start_triton(tmp_path, ("tiny",))
    try:
        async with TritonEngine(Endpoint("triton", victim.grpc_url)) as client:
            await run(client, stream=False)
            tasks = [
                asyncio.create_task(
                    error_of(client, "[[sim:slow=100]]", stream=stream, max_tokens=200, ignore_eos=True)
                )
                for stream in (True, False)
            ]

            async def started() -> bool:
                return await busy(victim, "tiny") == 2

            await eventually(started, "the engine runs both")
            victim.kill()
            for error in await asyncio.wait_for(asyncio.gather(*tasks), 10):
                assert (error.code, error.disposition) == ("server_died", RETRY)
            error = await error_of(client)
            assert (error.code, error.disposition) == ("server_unreachable", WAIT)
    finally:
        victim.kill()


async def test_the_index_tells_states_and_reasons(client: TritonEngine, triton: RunningTriton) -> None:
    from tritonclient.grpc import aio
    from tritonclient.utils import InferenceServerException

    async with aio.InferenceServerClient(triton.grpc_url) as raw:
        with pytest.raises(InferenceServerException):
            await raw.load_model("broken")
    models = {model.name: model for model in await client.models(5)}
    assert (models["tiny"].state, models["tiny"].reason) == ("ready", SIMULATED)
    assert models["broken"].state == "unavailable"
    assert "no_such_argument" in models["broken"].reason
    # Never asked for, so it has no state.
    assert "fragile" not in models


async def test_a_model_is_described_by_its_server(client: TritonEngine) -> None:
    described = await client.describe("tiny", 5)
    assert "text_input" in {tensor["name"] for tensor in described["inputs"]}
    assert "text_output" in {tensor["name"] for tensor in described["outputs"]}
    assert described["statistics"][0]["name"] == "tiny"
