"""Log probabilities of a prompt's tokens, from the engines that tell them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from app.config import Settings
from tests.faulty_http import Asked, Behaviour, event, faulty_server, head
from tests.openai.conftest import client_of
from tests.servers import RunningTriton, start_demo
from tests.service import eventually, running_api, running_dispatcher

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "The capital of France is"


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """With a model that runs for real."""
    server = start_demo(tmp_path_factory.mktemp("triton"))
    yield server
    server.stop()


async def test_a_prompt_is_judged(client: openai.AsyncOpenAI) -> None:
    """As lm-eval does it: how likely is each token of an answer after a question?"""
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    prompts = [f"{QUESTION}{ANSWER} Paris", f"{QUESTION}{ANSWER} purple"]
    answer = await client.completions.create(**asked, prompt=prompts)
    sums = []
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        told = choice.logprobs
        assert told is not None
        assert told.tokens is not None
        assert told.token_logprobs is not None
        assert told.top_logprobs is not None
        assert told.text_offset is not None
        assert choice.text.startswith(prompt)
        assert "".join(told.tokens) == choice.text
        assert (told.token_logprobs[0], told.top_logprobs[0], told.text_offset[0]) == (None, None, 0)
        assert len({len(told.tokens), len(told.token_logprobs), len(told.top_logprobs), len(told.text_offset)}) == 1
        assert told.tokens[-2] == prompt[-len(told.tokens[-2]) :]
        sums.append(sum(told.token_logprobs[-6:-1]))
    assert sums[0] > sums[1] + 3
    # The answer is what the model would say: the likeliest token each time.
    first = answer.choices[0].logprobs
    for number, likely in zip(first.token_logprobs[-6:], first.top_logprobs[-6:], strict=True):
        assert number == max(likely.values())
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    texts, numbers = "", []
    async for chunk in await client.completions.create(**asked, prompt=prompts[0], stream=True):
        for each in chunk.choices:
            texts += each.text
            numbers += each.logprobs.token_logprobs or [] if each.logprobs else []
    assert (texts, numbers) == (answer.choices[0].text, pytest.approx(first.token_logprobs, abs=0.05))


async def test_prompt_logprobs_as_vllm_has_them(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": f"{QUESTION}{ANSWER}", "max_tokens": 1, "temperature": 0}
    answer = await client.completions.create(**asked, extra_body={"prompt_logprobs": 2}, logprobs=0)
    choice = answer.choices[0]
    first, *rest = choice.to_dict()["prompt_logprobs"]  # type: ignore[misc]
    assert first is None
    assert answer.usage is not None
    assert len(rest) == answer.usage.prompt_tokens - 1
    assert all(2 <= len(row) <= 3 for row in rest)
    assert {"logprob", "rank", "decoded_token"} == set(next(iter(rest[0].values())))
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == [choice.text] == [" Paris"]


@pytest.fixture
def elsewhere(make_settings: Callable[..., Settings], tmp_path: Path) -> Callable[..., Any]:
    def make(behaviour: Behaviour) -> Any:
        return _service(make_settings, tmp_path / "servers.json", behaviour)

    return make


async def _service(make_settings: Callable[..., Settings], file: Path, behaviour: Behaviour) -> AsyncIterator[Any]:
    async with faulty_server(behaviour) as server:
        entry = {"kind": "openai", "url": server.url, "models": {"m": "far"}}
        await asyncio.to_thread(file.write_text, json.dumps({"servers": [entry]}))
        settings = make_settings(triton_urls=(), triton_servers_file=file)
        async with running_api(settings) as running, running_dispatcher(settings), client_of(running) as client:

            async def ready() -> bool:
                return "far" in [model.id async for model in client.models.list()]

            await eventually(ready, "the model is there")
            yield client, server


def part(text: str, tokens: list[str], numbers: list[float | None], reason: str | None = None) -> bytes:
    tops = [None if number is None else {token: number} for token, number in zip(tokens, numbers, strict=True)]
    logprobs = {"tokens": tokens, "token_logprobs": numbers, "top_logprobs": tops, "text_offset": [0] * len(tokens)}
    return event({"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}]})


ASKED: dict[str, Any] = {"model": "far", "prompt": "A b", "max_tokens": 1, "echo": True, "logprobs": 1}


async def test_a_server_that_repeats_the_prompt_judges_it(elsewhere: Callable[..., Any]) -> None:
    async def repeats(_: Asked) -> AsyncIterator[bytes]:
        yield head() + part("A b", ["A", " b"], [None, -2.0]) + part(" c", [" c"], [-0.5], "length")
        yield event({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}) + b"data: [DONE]\n\n"

    async for client, server in elsewhere(repeats):
        choice = (await client.completions.create(**ASKED)).choices[0]
        assert (choice.text, choice.logprobs.token_logprobs) == ("A b c", [None, -2.0, -0.5])
        assert choice.logprobs.text_offset == [0, 1, 3]
        plain = {name: value for name, value in ASKED.items() if name != "echo"}
        choice = (await client.completions.create(**plain, extra_body={"prompt_logprobs": 0})).choices[0]
        assert (choice.text, choice.logprobs.tokens) == (" c", [" c"])
        assert [row and [each["logprob"] for each in row.values()] for row in choice.prompt_logprobs] == [None, [-2.0]]
        assert all((each.json["echo"], each.json["logprobs"]) == (True, 1) for each in server.asked)


async def test_a_server_that_does_not_is_told_apart(elsewhere: Callable[..., Any]) -> None:
    async def goes_on(_: Asked) -> AsyncIterator[bytes]:
        yield head() + part(" c", [" c"], [-0.5], "length") + b"data: [DONE]\n\n"

    async for client, _ in elsewhere(goes_on):
        for asked in (ASKED, ASKED | {"stream": True}):
            with pytest.raises(openai.BadRequestError, match="no log probabilities of the prompt") as refused:
                await client.completions.create(**asked)
            assert refused.value.code == "not_supported_by_model"
