"""An answer has a bound: by estimate before it is stored, by count while it is generated."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.config import Settings
from app.tasks.chunks import Accumulator, Chunk
from app.tasks.generate import largest_answer
from tests.api.test_bad_input import check_problem
from tests.service import running_api, running_dispatcher

SMALL = 1024


async def test_the_worst_legal_request_fails_alone(make_settings: Callable[..., Settings]) -> None:
    """240 tokens may come to 960 bytes by the estimate; the engine's are longer."""
    settings = make_settings(max_answer_bytes=SMALL)
    async with running_api(settings) as service, running_dispatcher(settings):
        large, *small = await asyncio.gather(
            service.run(max_tokens=240, ignore_eos=True),
            *(service.run(max_tokens=5, ignore_eos=True) for _ in range(30)),
        )
        assert (large["status"], large["attempt_count"], large["error"]["code"]) == ("failed", 1, "answer_too_large")
        assert "1,024 bytes" in large["error"]["message"]
        assert "MAX_ANSWER_BYTES" in large["error"]["message"]
        assert 0 < len(large["output"]) <= SMALL
        assert {(each["status"], each["attempt_count"]) for each in small} == {("completed", 1)}


async def test_one_choice_too_many_ends_them_all(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(max_answer_bytes=SMALL)
    async with running_api(settings) as service, running_dispatcher(settings):
        result = await service.run(n=4, max_tokens=60, ignore_eos=True)
        assert (result["status"], result["error"]["code"]) == ("failed", "answer_too_large")


@pytest.mark.parametrize("asked", [{"n": 5, "max_tokens": 100}, {"n": 2, "max_tokens": 50, "logprobs": 20}])
async def test_a_request_that_may_come_to_more_is_refused_with_its_numbers(
    make_settings: Callable[..., Settings], asked: dict[str, Any]
) -> None:
    async with running_api(make_settings(max_answer_bytes=SMALL)) as service:
        context = await service.context()
        answer = await service.client.post(f"/models/send/tiny/{context}", json={"parameters": asked})
        check_problem(answer, 422, "invalid_parameters", "1,024")
        assert all(f"{name} {value}" in answer.text for name, value in asked.items())
        body = {"model": "tiny", "prompt": "x", "max_tokens": 50, "n": 2, "logprobs": 5}
        answer = await service.client.post("/v1/completions", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_parameters", "max_tokens")


def test_the_estimate_is_by_choices_tokens_and_alternatives() -> None:
    assert largest_answer({"max_tokens": 100}) == 400
    assert largest_answer({"n": 3, "max_tokens": 100}) == 1200
    assert largest_answer({"max_tokens": 100, "logprobs": 0}) == 8400
    assert largest_answer({"max_tokens": 100, "logprobs": 20}) == 168_400


def test_a_long_answer_is_folded_in_place() -> None:
    """Copied for each message, the logprobs of a long answer would take time by the square of its length."""
    answer = Accumulator()
    for token in range(3):
        answer.add(Chunk(["x"], [None], logprobs=[[{"1": {"logprob": token}}]], size=30))
        if not token:
            first = answer.logprobs[0]
    assert answer.logprobs[0] is first
    assert first is not None
    assert [entry["1"]["logprob"] for entry in first] == [0, 1, 2]
    assert answer.size == 90
