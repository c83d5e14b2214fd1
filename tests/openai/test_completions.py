"""POST /v1/completions through the official client."""

from typing import Any

import openai
import pytest

from tests.service import Service


async def test_a_prompt_is_completed(client: openai.AsyncOpenAI, service: Service) -> None:
    answer = await client.completions.create(model="tiny", prompt="Tell me.", max_tokens=12, seed=1)
    assert answer.object == "text_completion"
    digits = answer.id.removeprefix("cmpl-")
    result = (await service.client.get(f"/results/{digits}")).json()
    assert result["output"] == answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == result["usage"]["completion_tokens"]
    again = await client.get(f"/completions/{answer.id}", cast_to=dict[str, Any])
    assert again["choices"][0]["text"] == answer.choices[0].text


async def test_a_stream_says_what_the_answer_says(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Tell me.", "max_tokens": 40, "seed": 2, "n": 2}
    answer = await client.completions.create(**asked)
    texts, reasons = ["", ""], [None, None]
    async for chunk in await client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in answer.choices]
    assert reasons == [choice.finish_reason for choice in answer.choices]


async def test_logprobs_have_the_old_shape(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Tell me.", "max_tokens": 9, "seed": 2, "logprobs": 2}
    choice = (await client.completions.create(**asked)).choices[0]
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert "".join(found.tokens) == choice.text
    assert found.text_offset is not None
    assert [choice.text[offset:] for offset in found.text_offset[:2]] == [
        choice.text,
        choice.text[len(found.tokens[0]) :],
    ]
    assert found.top_logprobs is not None
    assert found.token_logprobs is not None
    for token, number, likely in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert likely[token] == number
        assert len(likely) == 2
    offsets: list[int] = []
    async for chunk in await client.completions.create(**asked, stream=True):
        for part in chunk.choices:
            offsets += part.logprobs.text_offset or [] if part.logprobs else []
    assert offsets == found.text_offset


async def test_echo_puts_the_prompt_first(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["Tell me."], "max_tokens": 5, "seed": 2}
    plain = (await client.completions.create(**asked)).choices[0].text
    assert (await client.completions.create(**asked, echo=True)).choices[0].text == "Tell me." + plain
    chunks = [chunk async for chunk in await client.completions.create(**asked, echo=True, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Tell me." + plain


async def test_several_prompts_are_streamed_together(client: openai.AsyncOpenAI, service: Service) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["One.", "Two.", "Three."], "max_tokens": 6, "seed": 2, "n": 2}
    whole = await client.completions.create(**asked)
    options: Any = {"stream": True, "stream_options": {"include_usage": True}, "store": False}
    chunks = [chunk async for chunk in await client.completions.create(**asked, extra_body=options, stream=True)]
    texts = [""] * 6
    reasons = {}
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert len({chunk.id for chunk in chunks}) == 1
    rows = (await service.client.get("/results/")).json()
    assert [row["kept"] for row in rows] == [False] * 3 + [True] * 3


async def test_a_failure_among_several_ends_their_stream(service: Service) -> None:
    body = {"model": "tiny", "prompt": ["One.", "too long " * 5000], "stream": True, "max_tokens": 5}
    answer = await service.client.post("/v1/completions", json=body)
    assert "context_length_exceeded" in answer.text


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream_options": {"include_all": True}}, "stream_options.include_all"),
    ],
)
async def test_what_cannot_be_done_is_refused(client: openai.AsyncOpenAI, changes: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/completions", cast_to=object, body={"model": "tiny", "prompt": "x"} | changes)
    assert refused.value.param == param
