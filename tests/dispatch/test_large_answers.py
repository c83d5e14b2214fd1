"""An answer has a bound: by estimate before it is stored, by count while it is generated."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.config import Settings
from app.db.engine import Database
from app.tasks.chunks import Accumulator, Chunk
from app.tasks.generate import largest_answer
from tests.api.test_bad_input import check_problem
from tests.service import eventually, running_api, running_dispatcher

SMALL = 1024


async def test_the_worst_legal_request_fails_alone(make_settings: Callable[..., Settings]) -> None:
    """240 tokens may come to 960 bytes by the estimate; the engine's are longer."""
    settings = make_settings(max_answer_bytes=SMALL)
    async with running_api(settings) as service, running_dispatcher(settings):
        large, *small = await asyncio.gather(
            service.run(stream=True, max_tokens=240, ignore_eos=True),
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


async def test_what_is_in_flight_is_bounded_by_bytes_and_goes_on(
    make_settings: Callable[..., Settings], database: Database
) -> None:
    """Each may come to 800 bytes: two of them fill the room, and a third would be the one too many that may start."""
    settings = make_settings(max_in_flight_bytes=1500)
    large = {"max_tokens": 200, "stop": ["."]}
    most = 0
    async with running_api(settings) as service:
        ids = [await service.send(model="slow", parameters=large) for _ in range(8)]
        # More than all the room: it goes alone.
        ids.append(await service.send(model="slow", parameters={"max_tokens": 600, "stop": ["."]}))
        async with running_dispatcher(settings):

            async def ended() -> bool:
                nonlocal most
                async with database.hot() as connection:
                    running, left = await connection.fetchrow(
                        "SELECT count(*) FILTER (WHERE attempt_token IS NOT NULL),"
                        " count(*) FILTER (WHERE status = 'pending') FROM results"
                    )
                most = max(most, running)
                return bool(left == 0)

            await eventually(ended, "all end")
        results = [await service.result(id_) for id_ in ids]
    assert most == 2
    assert {(each["status"], each["attempt_count"]) for each in results} == {("completed", 1)}


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


async def test_a_retry_is_held_to_the_bound_of_today(make_settings: Callable[..., Settings]) -> None:
    async with running_api(make_settings()) as service:
        id_ = await service.send(parameters={"max_tokens": 500})
        await service.client.post(f"/results/{id_}/cancel")
    async with running_api(make_settings(max_answer_bytes=SMALL)) as service:
        answer = await service.client.post(f"/results/{id_}/retry")
        check_problem(answer, 422, "invalid_parameters", "max_tokens 500", "MAX_ANSWER_BYTES allows 1,024")
        assert len((await service.client.get("/results/")).json()) == 1
    async with running_api(make_settings()) as service:
        assert (await service.client.post(f"/results/{id_}/retry")).status_code == 202


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
