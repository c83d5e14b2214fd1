"""Error texts that clients have to tell apart, as far as the probes (test_probes.py) do not ask for them."""

import json
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from nvidia_triton.contract.wire import Client
from tests.servers import RunningTriton
from tests.service import eventually

PROMPT = "Tell me about the harbour."
STREAM = "Error generating stream: "


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        ({"temperature": -1}, "temperature must be non-negative"),
        ({"temperature": "warm"}, "could not convert string to float"),
        ({"top_p": 2}, "top_p must be in (0, 1]"),
        ({"top_p": 0}, "top_p must be in (0, 1]"),
        ({"top_k": -2}, "top_k must be 0 (disable), or at least 1"),
        ({"min_p": 1.5}, "min_p must be in [0, 1]"),
        ({"presence_penalty": 3}, "presence_penalty must be in [-2, 2]"),
        ({"frequency_penalty": -3}, "frequency_penalty must be in [-2, 2]"),
        ({"repetition_penalty": 0}, "repetition_penalty must be greater than zero"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens must be"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 2, "temperature": 0}, "n must be 1 when using greedy sampling"),
        ({"logprobs": -2}, "logprobs must be non-negative"),
        ({"stop": [""]}, "stop cannot contain an empty string"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids must contain only integers"),
        ({"no_such_key": 1}, "Unexpected keyword argument 'no_such_key'"),
        ({"structured_outputs": {"json_object": True}}, "the JSON object must be str, bytes or bytearray"),
        ({"structured_outputs": json.dumps({"json_object": True, "regex": "a"})}, "exactly one kind"),
    ],
)
async def test_a_bad_parameter_is_named_in_the_log_only(
    client: Client, server: RunningTriton, sampling: dict[str, Any], reason: str
) -> None:
    before = len(server.log())
    error = await client.error("tiny", PROMPT, sampling=sampling)
    assert error == STREAM + "'NoneType' object has no attribute 'lora_name'"

    async def named() -> bool:
        return reason in server.log()[before:]

    # The stub's log reaches the server's on a way of its own.
    await eventually(named, f"{reason} in the log")


@pytest.mark.parametrize("sampling", ["{", "", "{'n': 1}"])
async def test_parameters_that_are_not_json(client: Client, sampling: str) -> None:
    error = await client.error("tiny", PROMPT, sampling=sampling)
    assert error.startswith("Failed to process the request(s) for model 'tiny_0_0', message: JSONDecodeError: ")
    assert "model.py" in error


async def test_parameters_that_are_not_an_object(client: Client) -> None:
    error = await client.error("tiny", PROMPT, sampling="[1]")
    assert error.startswith("Failed to process the request(s) for model 'tiny_0_0', message: TypeError: ")


@pytest.mark.parametrize("words", [257, 5000])
async def test_prompt_too_long(client: Client, words: int) -> None:
    error = await client.error("tiny", " word" * words)
    assert error == STREAM + (
        "This model's maximum context length is 256 tokens. However, you requested 0 output tokens and your "
        "prompt contains at least 257 input tokens, for a total of at least 257 tokens. Please reduce the "
        "length of the input prompt or the number of requested output tokens. "
        "(parameter=input_tokens, value=257)"
    )


async def test_prompt_one_below_the_limit(client: Client) -> None:
    [message] = await client.ask("tiny", " word" * 255)
    assert message.outputs["num_output_tokens"].tolist() == [1]
    assert message.strings("finish_reason") == ["length"]


async def test_logit_bias_always_fails(client: Client) -> None:
    error = await client.error("tiny", PROMPT, sampling={"logit_bias": {"42": -100}})
    assert error == STREAM + "'<' not supported between instances of 'str' and 'int'"
    assert await client.ask("tiny", PROMPT, sampling={"logit_bias": {}})


async def test_a_schema_that_the_engine_does_not_support(client: Client) -> None:
    schema = {"type": "array", "uniqueItems": True}
    error = await client.error("tiny", PROMPT, sampling={"structured_outputs": json.dumps({"json": schema})})
    assert error == STREAM + "The provided JSON schema contains features not supported by xgrammar."


async def test_lora(client: Client) -> None:
    sampling = {"lora_name": "cat"}
    assert await client.error("tiny", PROMPT, sampling=sampling) == "LoRA feature is not enabled."
    error = await client.error("lora", PROMPT, sampling=sampling)
    assert error == "LoRA cat is not supported, we currently support ['doll', 'sheep']"


async def test_unknown_models_and_versions(client: Client) -> None:
    assert await client.error("nobody", PROMPT) == "Request for unknown model: 'nobody' is not found"
    error = await client.error("tiny", PROMPT, model_version="7")
    assert error == "Request for unknown model: 'tiny' version 7 is not found"


async def test_wrong_inputs(client: Client) -> None:
    error = await client.error("tiny", PROMPT, more={"x": (True, "BOOL")})
    assert error.endswith("unexpected inference input 'x' for model 'tiny'")
    error = await client.error("tiny", PROMPT, more={"stream": (1, "INT32")}, request_id="r-2")
    assert error == "[request id: r-2] inference input 'stream' data-type is 'INT32', but model 'tiny' expects 'BOOL'"
    error = await client.error("tiny", PROMPT, more={"stream": ([True, False], "BOOL")})
    assert "unexpected shape for input 'stream' for model 'tiny'" in error


async def test_an_error_of_the_engine(client: Client) -> None:
    assert await client.error("tiny", "[[sim:error=out of luck]]") == STREAM + "out of luck"


async def test_infer_is_refused(client: Client) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await client.grpc.infer("tiny", [])
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


async def test_an_unknown_engine_argument_fails_the_load(client: Client) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await client.grpc.load_model("broken")
    assert caught.value.message().startswith(
        "load failed for model 'broken': version 1 is at UNAVAILABLE state: Internal: TypeError: "
        "AsyncEngineArgs.__init__() got an unexpected keyword argument 'no_such_argument'"
    )
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert await client.grpc.is_server_ready()
    error = await client.error("broken", PROMPT)
    assert error == "Request for unknown model: 'broken' has no available versions"


async def test_repository_calls_for_unknown_models(client: Client) -> None:
    assert not await client.grpc.is_model_ready("nobody")
    assert not await client.grpc.is_model_ready("tiny", "7")
    await client.grpc.unload_model("nobody")
    for call, status in (
        (client.grpc.get_model_metadata("nobody"), "StatusCode.NOT_FOUND"),
        (client.grpc.get_model_config("nobody"), "StatusCode.NOT_FOUND"),
        (client.grpc.get_inference_statistics("nobody"), "StatusCode.INVALID_ARGUMENT"),
        (client.grpc.load_model("nobody"), "StatusCode.INTERNAL"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            await call
        assert caught.value.status() == status
