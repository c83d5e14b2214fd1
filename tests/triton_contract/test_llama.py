"""The same contract with a real model behind it: llama.cpp and SmolLM2, as `make run` serves `demo`."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton

from nvidia_triton.contract.probe import Probe, Subject
from nvidia_triton.contract.wire import Client, Message, read
from tests.engine import busy, generated
from tests.rotation import third_of
from tests.servers import RunningTriton, start_demo
from tests.service import eventually

from .verdicts import ALL, assert_as_documented

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 8192
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    running = start_demo(tmp_path_factory.mktemp("triton"))
    yield running
    running.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(server: RunningTriton) -> AsyncIterator[Client]:
    async with triton.InferenceServerClient(server.grpc_url) as grpc:
        yield Client(grpc)


async def answer(client: Client, prompt: str = QUESTION, **sampling: Any) -> Message:
    [message] = await client.ask("demo", prompt, sampling={"temperature": 0, "max_tokens": 30} | sampling)
    return message


async def test_a_real_model_answers(client: Client, server: RunningTriton) -> None:
    message = await answer(client)
    assert message.text == [ANSWER]
    assert message.strings("finish_reason") == ["stop"]
    # What the tokenizer of transformers makes of it, the end token of the answer counted.
    assert message.outputs["num_input_tokens"].item() == 16
    assert message.outputs["num_output_tokens"].tolist() == [8]
    metadata = await client.grpc.get_model_metadata("demo")
    assert "simulation" not in [output.name for output in metadata.outputs]
    assert "llama.cpp runs HuggingFaceTB/SmolLM2-135M-Instruct" in server.log()


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3, "stop": ["🙃🙃🙃"]}])
async def test_a_stream_adds_up_to_the_whole(client: Client, sampling: dict[str, Any]) -> None:
    prompt = "Repeat: 🙂🙃🙂🙃🙂🙃🙂🙃 naïve 日本語 🙂🙃🙂🙃"
    whole = await answer(client, prompt, **sampling)
    sampling = {"temperature": 0, "max_tokens": 30} | sampling
    messages = await client.ask("demo", prompt, stream=True, sampling=sampling)
    assert "".join(each.text[0] for each in messages) == whole.text[0]
    assert "\ufffd" not in whole.text[0]
    assert [each.final for each in messages] == [False] * (len(messages) - 1) + [True]
    assert {each.strings("finish_reason")[0] for each in messages[:-1]} <= {"None"}
    assert messages[-1].strings("finish_reason") == whole.strings("finish_reason")
    total = sum(int(each.outputs["num_output_tokens"][0]) for each in messages)
    assert [total] == whole.outputs["num_output_tokens"].tolist()


async def test_what_ends_a_text(client: Client) -> None:
    stopped = await answer(client, stop=["of Fr", "Paris"])
    assert (stopped.text, stopped.strings("finish_reason")) == (["The capital "], ["stop"])
    kept = await answer(client, stop="France", include_stop_str_in_output=True)
    assert kept.text == ["The capital of France"]
    cut = await answer(client, max_tokens=3)
    assert (cut.text, cut.strings("finish_reason")) == (["The capital of"], ["length"])
    assert cut.outputs["num_output_tokens"].tolist() == [3]
    longer = await answer(client, min_tokens=12, max_tokens=20)
    assert longer.outputs["num_output_tokens"][0] >= 12
    endless = await answer(client, ignore_eos=True, max_tokens=40)
    assert endless.outputs["num_output_tokens"].tolist() == [40]
    late = await answer(client, stop=["France"], min_tokens=8)
    assert "France" in late.text[0]


async def test_a_seed_repeats_a_text_and_another_one_does_not(client: Client) -> None:
    story = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"
    sampling = {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "min_p": 0.01, "presence_penalty": 0.2}
    first, again, other = [await answer(client, story, seed=seed, **sampling) for seed in (7, 7, 8)]
    assert first.text == again.text != other.text


async def test_log_probabilities(client: Client) -> None:
    message = await answer(client, logprobs=20, max_tokens=4)
    rows = json.loads(message.strings("logprobs")[0])
    assert [next(iter(row.values()))["decoded_token"] for row in rows] == ["The", " capital", " of", " France"]
    for row in rows:
        entries = list(row.values())
        assert [entry["rank"] for entry in entries] == list(range(1, 21))
        logprobs = [entry["logprob"] for entry in entries]
        assert logprobs == sorted(logprobs, reverse=True)
        assert logprobs[0] <= 0
    chosen = sum(next(iter(row.values()))["logprob"] for row in rows)
    assert message.outputs["cumulative_logprob"].item() == pytest.approx(chosen, abs=1e-4)
    [row] = json.loads((await answer(client, logprobs=2, max_tokens=1, bad_words=["The"])).strings("logprobs")[0])
    # The chosen token comes first, its rank is the one among all.
    assert [entry["rank"] for entry in row.values()] == [2, 1]


async def test_tokens_are_allowed_forbidden_and_favoured(client: Client) -> None:
    assert "Paris" not in (await answer(client, bad_words=["Paris"])).text[0]
    only = await answer(client, allowed_token_ids=[504, 3575], max_tokens=4)
    assert set(only.text[0].split()) <= {"The", "capital"}
    assert (await answer(client, logit_bias={"3575": 100}, max_tokens=3)).text == [" capital capital capital"]
    assert (await answer(client, stop_token_ids=[282])).text == ["The capital"]


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"choice": ["red", 'the "blue" one']}, r'red|the "blue" one'),
        ({"regex": r"[A-Z]{3}-\d{4}"}, r"[A-Z]{3}-\d{4}"),
        ({"grammar": 'root ::= "yes, " [0-9] "!"'}, r"yes, \d!"),
    ],
)
async def test_a_text_keeps_to_its_constraint(client: Client, constraint: dict[str, Any], pattern: str) -> None:
    message = await answer(client, structured_outputs=json.dumps(constraint), temperature=1.0)
    assert re.fullmatch(pattern, message.text[0])
    assert message.strings("finish_reason") == ["stop"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_tokens_of_a_prompt_are_as_likely_as_if_they_were_generated(client: Client, stream: bool) -> None:
    generated = await answer(client, logprobs=2, max_tokens=3)
    expected = [next(iter(row.values()))["logprob"] for row in json.loads(generated.strings("logprobs")[0])]
    sampling = {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 2}
    first, *_ = await client.ask("demo", QUESTION + generated.text[0], sampling=sampling, stream=stream)
    rows = json.loads(first.strings("prompt_logprobs")[0])
    assert len(rows) == first.outputs["num_input_tokens"].item()
    assert [entry["logprob"] for entry in rows[0].values()] == [None]
    told = [next(iter(row.values())) for row in rows]
    assert "".join(entry["decoded_token"] for entry in told) == QUESTION + generated.text[0]
    assert [entry["logprob"] for entry in told[-3:]] == pytest.approx(expected, abs=0.05)
    assert {len(row) for row in rows[1:]} <= {2, 3}


async def test_json_keeps_to_its_schema(client: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 9}},
        "required": ["city", "people"],
    }
    structured = json.dumps({"json": schema})
    value = json.loads((await answer(client, structured_outputs=structured, max_tokens=60)).text[0])
    assert set(value) == {"city", "people"}
    assert isinstance(value["people"], int)


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({"n": 2, "temperature": 1}, "The local engine, llama.cpp, does not support n above 1."),
        ({"truncate_prompt_tokens": 5}, "The local engine, llama.cpp, does not support truncate_prompt_tokens."),
        ({"logprobs": 21}, "Requested sample logprobs of 21, which is greater than max allowed: 20"),
        ({"stop_token_ids": [999_999]}, "token_id(s) [999999] in stop_token_ids contain out-of-vocab token ids."),
        ({"allowed_token_ids": [49_152]}, "allowed_token_ids contains out-of-vocab token id!"),
        ({"structured_outputs": '{"regex": "("}'}, "Grammar error: "),
        ({"structured_outputs": '{"json": {"$ref": "#/nowhere"}}'}, "Grammar error: "),
        ({"structured_outputs": '{"grammar": "root ("}'}, "Invalid grammar specification: "),
        ({"temperature": -1}, "'NoneType' object has no attribute 'lora_name'"),
    ],
)
async def test_what_cannot_be_done_is_refused(client: Client, sampling: dict[str, Any], text: str) -> None:
    assert (await client.error("demo", QUESTION, sampling=sampling)).startswith(f"Error generating stream: {text}")


async def test_the_context_is_counted_in_the_models_tokens(client: Client) -> None:
    assert "cannot be empty" in await client.error("demo", "")
    words = " the" * (CONTEXT - 1)
    assert f"(length {CONTEXT}) plus the number" in await client.error("demo", words + " end")
    assert f"maximum context length is {CONTEXT} tokens" in await client.error("demo", words + " the end")


async def test_many_at_once_beside_a_long_prompt(client: Client, server: RunningTriton) -> None:
    """The long one takes many steps, in which the short ones go on; each gets what it gets alone."""
    long = client.stream("demo", " the" * 1500, sampling={"max_tokens": 1})
    end = asyncio.create_task(anext(long))
    await wait_busy(server, 1)
    shorts = await asyncio.gather(*(answer(client) for _ in range(8)))
    assert not end.done()
    assert {message.text[0] for message in shorts} == {ANSWER}
    long.cancel()
    await asyncio.gather(end, return_exceptions=True)
    await wait_busy(server, 0)


async def test_a_cancel_stops_the_engine(client: Client, server: RunningTriton) -> None:
    before = await generated(server, "demo")
    sampling = {"max_tokens": 2000, "ignore_eos": True, "temperature": 1.0}
    for stream in (True, False):
        requests = [client.stream("demo", QUESTION, stream=stream, sampling=sampling) for _ in range(4)]
        tasks = [asyncio.create_task(anext(each)) for each in requests]
        if stream:
            for result, error in await asyncio.gather(*tasks):
                assert error is None
                assert not read(result).final
        else:
            await wait_busy(server, 4)
        for each in requests:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await wait_busy(server, 0)
    assert await generated(server, "demo") - before < 8 * 200
    assert (await answer(client)).text == [ANSWER]


async def wait_busy(server: RunningTriton, count: int) -> None:
    async def reached() -> bool:
        return await busy(server, "demo") == count

    await eventually(reached, f"the engine runs {count}", 20)


@pytest.mark.parametrize(
    "probes", [pytest.param(third_of(ALL), id="a third"), pytest.param(ALL, id="all", marks=pytest.mark.long)]
)
async def test_llama_does_what_the_document_says(
    client: Client, server: RunningTriton, probes: Sequence[Probe]
) -> None:
    await assert_as_documented(Subject(client.grpc, "demo", server.metrics_url), "llama.cpp", probes)
