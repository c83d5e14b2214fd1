"""What a request gets back: tensors, deltas, ends."""

import asyncio
import base64
import json
import math
import re
import time

import httpx
import numpy as np
import pytest
from jsonschema import validate
from tritonclient.utils import InferenceServerException

from nvidia_triton.contract.wire import RETURNED, Client
from tests.servers import RunningTriton
from tests.service import eventually

PROMPT = "Tell me about the harbour."


async def test_the_backend_declares_inputs_and_outputs_itself(client: Client) -> None:
    config = (await client.grpc.get_model_config("tiny", as_json=True))["config"]
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert "max_batch_size" not in config
    inputs = {each["name"]: each for each in config["input"]}
    assert inputs["text_input"] == {"name": "text_input", "data_type": "TYPE_STRING", "dims": ["1"]}
    assert inputs["stream"] == {"name": "stream", "data_type": "TYPE_BOOL", "dims": ["1"], "optional": True}
    assert inputs["image"]["dims"] == ["-1"]
    outputs = {each["name"]: (each["data_type"], each["dims"]) for each in config["output"]}
    assert outputs == {
        "text_output": ("TYPE_STRING", ["-1"]),
        "finish_reason": ("TYPE_STRING", ["-1"]),
        "cumulative_logprob": ("TYPE_FP32", ["-1"]),
        "logprobs": ("TYPE_STRING", ["-1"]),
        "num_input_tokens": ("TYPE_UINT32", ["1"]),
        "num_output_tokens": ("TYPE_UINT32", ["-1"]),
        # Of the simulation alone, and never sent.
        "simulation": ("TYPE_STRING", ["1"]),
    }


async def test_bare_text_input(client: Client) -> None:
    [message] = await client.ask("tiny", PROMPT, exclude=None, returned=(), request_id="r-1")
    assert set(message.outputs) == {"text_output"}
    assert message.text[0].startswith(PROMPT + "[simulated]")
    assert message.final
    assert message.id == "r-1"
    [counted] = await client.ask("tiny", PROMPT, exclude=None)
    assert counted.outputs["num_output_tokens"].tolist() == [16]


async def test_dtypes_and_shapes(client: Client) -> None:
    [message] = await client.ask("tiny", PROMPT, sampling={"n": 3, "max_tokens": 7})
    assert len(message.text) == 3
    assert message.strings("finish_reason") == ["length"] * 3
    assert message.outputs["num_input_tokens"].shape == ()
    assert message.outputs["num_input_tokens"].dtype == np.uint32
    assert message.outputs["num_input_tokens"].item() == 6
    assert message.outputs["num_output_tokens"].tolist() == [7, 7, 7]
    assert message.outputs["num_output_tokens"].dtype == np.uint32
    assert message.outputs["cumulative_logprob"].dtype == np.float32
    assert all(math.isnan(each) for each in message.outputs["cumulative_logprob"])
    assert message.strings("logprobs") == ["null"] * 3


@pytest.mark.parametrize("name", RETURNED)
async def test_an_output_not_asked_for_is_absent(client: Client, name: str) -> None:
    [message] = await client.ask("tiny", PROMPT, returned=(name,))
    assert set(message.outputs) == {"text_output", name}


@pytest.mark.parametrize("model", ["tiny", "noop"])
async def test_streaming_sends_deltas_and_ends_on_the_last_of_them(client: Client, model: str) -> None:
    sampling = {"seed": 7, "max_tokens": 60, "ignore_eos": True}
    messages = await client.ask(model, PROMPT, stream=True, sampling=sampling)
    [whole] = await client.ask(model, PROMPT, sampling=sampling)
    assert "".join(each.text[0] for each in messages) == whole.text[0]
    assert [each.final for each in messages] == [False] * (len(messages) - 1) + [True]
    reasons = [each.strings("finish_reason")[0] for each in messages]
    assert reasons == ["None"] * (len(messages) - 1) + ["length"]
    sizes = [int(each.outputs["num_output_tokens"][0]) for each in messages]
    assert sum(sizes) == 60
    assert max(sizes) > 1
    assert max(sizes) <= 5
    assert messages[-1].text[0]


async def test_a_delta_is_empty_while_a_character_is_incomplete(client: Client) -> None:
    messages = await client.ask("tiny", "[[sim:chunk=1]][[sim:emit=a😀b]]", stream=True)
    assert [each.text[0] for each in messages] == ["a", "", "😀", "b", ""]
    assert messages[-1].strings("finish_reason") == ["stop"]


@pytest.mark.parametrize("marker", [r"emit=a\u0000b", f"emit64={base64.b64encode(b'a' + bytes(1) + b'b').decode()}"])
async def test_text_is_sent_verbatim(client: Client, marker: str) -> None:
    [message] = await client.ask("tiny", f"[[sim:{marker}]]")
    assert message.text == ["a\0b"]


async def test_markers_are_plain_text_without_faults(client: Client) -> None:
    [message] = await client.ask("noop", "[[sim:emit=x]]")
    assert message.text[0].startswith("[simulated]")


async def test_seeds(client: Client) -> None:
    async def text(prompt: str = PROMPT, **sampling: object) -> str:
        [message] = await client.ask("noop", prompt, sampling={"max_tokens": 80, **sampling})
        return message.text[0]

    assert await text(seed=1) == await text(seed=1)
    assert await text(seed=1) != await text(seed=2)
    assert await text(seed=1) != await text("Another prompt.", seed=1)
    assert await text() != await text()
    assert await text(temperature=0) == await text(temperature=0)
    assert await text(seed=-5) == await text(seed=-5)


async def test_sequences_of_one_request_differ(client: Client) -> None:
    sampling = {"n": 2, "seed": 3, "max_tokens": 50, "ignore_eos": True}
    [message] = await client.ask("noop", PROMPT, sampling=sampling)
    assert message.text[0] != message.text[1]


async def test_streaming_several_sequences(client: Client) -> None:
    sampling = {"n": 2, "seed": 3, "max_tokens": 30, "ignore_eos": True}
    messages = await client.ask("tiny", PROMPT, stream=True, sampling=sampling)
    [whole] = await client.ask("tiny", PROMPT, sampling=sampling)
    assert ["".join(texts) for texts in zip(*(each.text for each in messages), strict=True)] == whole.text


async def test_sequences_that_end_early_get_lost(client: Client) -> None:
    """So it is with vLLM: a sequence that has ended is not in later messages, and without a stream only one is sent."""

    alone = {}
    for seed in (5, 6, 7):
        [message] = await client.ask("noop", PROMPT, sampling={"seed": seed, "max_tokens": 200})
        alone[message.text[0]] = int(message.outputs["num_output_tokens"][0])
    assert len(set(alone.values())) == 3
    [message] = await client.ask("noop", PROMPT, sampling={"n": 3, "seed": 5, "max_tokens": 200})
    assert message.text == [max(alone, key=alone.__getitem__)]


async def test_texts_mix_when_one_ends_before_another(client: Client) -> None:
    """The backend goes on at a position where another sequence's text stood."""
    alone: list[tuple[int, str]] = []
    while len(alone) < 2 or alone[-2][0] + 10 > alone[-1][0]:
        [message] = await client.ask("noop", PROMPT, sampling={"seed": len(alone), "max_tokens": 400})
        alone.append((int(message.outputs["num_output_tokens"][0]), message.text[0]))
    sampling = {"n": 2, "seed": len(alone) - 2, "max_tokens": 400}
    messages = await client.ask("noop", PROMPT, stream=True, sampling=sampling)
    counts = [len(each.text) for each in messages]
    ended = counts.index(1)
    assert counts == [2] * ended + [1] * (len(counts) - ended)
    assert messages[ended - 1].strings("finish_reason") == ["stop", "None"]
    assert messages[-1].strings("finish_reason") == ["stop"]
    assert "".join(each.text[0] for each in messages[:ended]) == alone[-2][1]
    second = [each.text[-1] for each in messages]
    assert "".join(second) != alone[-1][1]


async def test_max_tokens_is_clamped_to_the_context(client: Client) -> None:
    [message] = await client.ask("tiny", PROMPT, sampling={"max_tokens": 100_000, "ignore_eos": True})
    assert message.outputs["num_output_tokens"].tolist() == [256 - 6]
    assert message.strings("finish_reason") == ["length"]


async def test_a_text_ends_by_itself(client: Client) -> None:
    [message] = await client.ask("noop", PROMPT, sampling={"max_tokens": 2000})
    assert message.strings("finish_reason") == ["stop"]
    [short] = await client.ask("tiny", "[[sim:tokens=9]]", sampling={"max_tokens": 200})
    assert short.outputs["num_output_tokens"].tolist() == [9]
    assert short.strings("finish_reason") == ["stop"]


async def test_min_tokens(client: Client) -> None:
    sampling = {"min_tokens": 1000, "max_tokens": 2000, "seed": 4}
    [message] = await client.ask("noop", PROMPT, sampling=sampling)
    assert message.outputs["num_output_tokens"][0] > 1000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("included", "text"), [(False, "one two"), (True, "one two th")])
async def test_stop_strings(client: Client, stream: bool, included: bool, text: str) -> None:
    sampling = {"stop": ["never", " th"], "include_stop_str_in_output": included}
    messages = await client.ask("tiny", "[[sim:emit=one two three four]]", stream=stream, sampling=sampling)
    assert "".join(each.text[0] for each in messages) == text
    assert messages[-1].strings("finish_reason") == ["stop"]
    assert sum(int(each.outputs["num_output_tokens"][0]) for each in messages) == 3


async def test_logprobs(client: Client) -> None:
    [message] = await client.ask("tiny", PROMPT, sampling={"logprobs": 2, "max_tokens": 4})
    rows = json.loads(message.strings("logprobs")[0])
    assert len(rows) == 4
    for row in rows:
        assert len(row) == 2
        assert all(key.isdigit() for key in row)
        assert all(set(entry) == {"logprob", "rank", "decoded_token"} for entry in row.values())
    chosen = [next(iter(row.values())) for row in rows]
    assert "".join(each["decoded_token"] for each in chosen) == message.text[0]
    total = sum(each["logprob"] for each in chosen)
    assert message.outputs["cumulative_logprob"].tolist() == [pytest.approx(total, rel=1e-5)]


async def test_streamed_logprobs_come_with_their_tokens(client: Client) -> None:
    messages = await client.ask("tiny", PROMPT, stream=True, sampling={"logprobs": 0, "max_tokens": 12})
    for message in messages:
        assert len(json.loads(message.strings("logprobs")[0])) == message.outputs["num_output_tokens"][0]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2},
        "home": {"$ref": "#/$defs/place"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags", "home", "note"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"lat": {"type": "number", "exclusiveMinimum": 0}}}},
}


async def test_structured_outputs(client: Client) -> None:
    async def text(spec: dict[str, object]) -> str:
        sampling = {"structured_outputs": json.dumps(spec), "max_tokens": 400}
        [message] = await client.ask("noop", PROMPT, sampling=sampling)
        assert message.strings("finish_reason") == ["stop"]
        return message.text[0]

    validate(json.loads(await text({"json": SCHEMA})), SCHEMA)
    assert isinstance(json.loads(await text({"json_object": True})), dict)
    assert await text({"choice": ["yes", "no"]}) in ("yes", "no")


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": "0.5"}, {"top_k": -1}, {"seed": -7}, {"max_tokens": None}, {"top_p": 1, "min_p": 0}],
)
async def test_accepted_without_complaint(client: Client, sampling: dict[str, object]) -> None:
    [message] = await client.ask("tiny", PROMPT, sampling=sampling)
    assert message.outputs["num_output_tokens"].tolist() == [16]


async def test_nul_in_the_prompt(client: Client) -> None:
    [message] = await client.ask("tiny", "a\0b", exclude=False)
    assert message.text[0].startswith("a\0b")


async def test_what_is_no_image_is_an_error(client: Client) -> None:
    image = base64.b64encode(b"not an image")
    with pytest.raises(InferenceServerException, match="cannot identify image file"):
        await client.ask("tiny", PROMPT, more={"image": ([image, image], "BYTES")})


async def test_request_parameters_stand_in_for_sampling_parameters(client: Client) -> None:
    [message] = await client.ask("tiny", PROMPT, parameters={"max_tokens": 3})
    assert message.outputs["num_output_tokens"].tolist() == [3]


async def test_a_request_timeout_has_no_effect(client: Client) -> None:
    [message] = await client.ask("tiny", "[[sim:first=50]]", timeout=1000)
    assert message.final


async def test_an_adapter_is_accepted_where_there_is_one(client: Client) -> None:
    [message] = await client.ask("lora", PROMPT, sampling={"lora_name": "doll"})
    assert message.final
    assert message.text[0].startswith("[simulated: doll]")


async def test_slots_limit_what_runs_at_once(client: Client) -> None:
    """Three times as many sequences as `slow` has slots take three rounds of three steps of 100 ms."""
    prompt = "[[sim:first=0]][[sim:slow=100]][[sim:tokens=4]]"
    started = time.monotonic()
    messages = await asyncio.gather(*(client.ask("slow", prompt, sampling={"n": 64}) for _ in range(3)))
    assert [len(each[0].text) for each in messages] == [64] * 3
    assert time.monotonic() - started > 0.85


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
        {"type": "string", "minLength": 10**10},
        {"$defs": {"a": {"type": "array", "minItems": 99, "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
    ],
)
async def test_a_schema_of_endless_texts_is_cut_off_like_any_other(client: Client, schema: dict[str, object]) -> None:
    sampling = {"structured_outputs": json.dumps({"json": schema}), "max_tokens": 9}
    [message] = await client.ask("noop", PROMPT, sampling=sampling)
    assert message.strings("finish_reason") == ["length"]


async def test_the_metrics_are_those_of_the_real_backend_and_the_counts_of_the_stand_in(
    client: Client, server: RunningTriton
) -> None:
    await client.ask("tiny", PROMPT, stream=True, sampling={"max_tokens": 20, "ignore_eos": True})
    async with httpx.AsyncClient(trust_env=False) as http:

        async def counted() -> str:
            text = (await http.get(server.metrics_url)).text
            return text if re.search(r'^vllm:request_params_n_count{[^}]*"tiny"[^}]*} [1-9]', text, re.M) else ""

        text = await eventually(counted, "the request is counted")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    assert {name: kind for name, kind in kinds.items() if name.startswith(("vllm:", "sim_"))} == {
        "vllm:prompt_tokens_total": "counter",
        "vllm:generation_tokens_total": "counter",
        "vllm:time_to_first_token_seconds": "histogram",
        "vllm:time_per_output_token_seconds": "histogram",
        "vllm:e2e_request_latency_seconds": "histogram",
        "vllm:request_prompt_tokens": "histogram",
        "vllm:request_generation_tokens": "histogram",
        "vllm:request_params_n": "histogram",
        "sim_requests_running": "gauge",
        "sim_requests_waiting": "gauge",
    }
    # Reported without being asked for too, unlike vLLM's.
    assert re.search(r'^sim_requests_running{[^}]*"noop"', text, re.M)
    assert not re.search(r'^vllm:.*"noop"', text, re.M)
