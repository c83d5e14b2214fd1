"""Tickets over HTTP, from the submit to the answer."""

import asyncio
import time
from datetime import datetime

import pytest

from tests.engine import busy, generated
from tests.servers import RunningTriton
from tests.service import Service, eventually


async def test_the_main_job_from_submit_to_answer(service: Service) -> None:
    context = await service.context("Name three uses of a paper clip.")
    sent = await service.client.post(
        f"/models/send/tiny/{context}",
        json={"parameters": {"max_tokens": 12, "seed": 5}, "priority": 3, "client_reference": "job-7"},
    )
    assert sent.status_code == 202
    ticket = sent.json()
    id_ = ticket["result_id"]
    assert sent.headers["location"] == ticket["status_url"] == f"/results/{id_}"
    assert int(sent.headers["retry-after"]) >= 1
    assert ticket | {"created_at": None, "result_id": None} == {
        "result_id": None,
        "status": "pending",
        "phase": "queued",
        "model": "tiny",
        "context_id": context,
        "retry_of": None,
        "created_at": None,
        "status_url": f"/results/{id_}",
        "cancel_url": f"/results/{id_}/cancel",
    }
    result = await service.settled(id_)
    assert result["status"] == "completed"
    assert result["phase"] is None
    assert result["error"] is None
    assert result["output"].startswith("[simulated]")
    assert "paper clip" not in result["output"][:20]
    assert result["outputs"] is None
    assert result["finish_reason"] in ("length", "stop")
    assert result["usage"]["prompt_tokens"] > 0
    assert 0 < result["usage"]["completion_tokens"] <= 12
    assert result["parameters"] == {"n": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 12, "seed": 5}
    assert (result["attempt_count"], result["priority"], result["client_reference"]) == (1, 3, "job-7")
    times = [datetime.fromisoformat(result[name]) for name in ("created_at", "started_at", "completed_at")]
    assert times == sorted(times)
    (attempt,) = await service.attempts(id_)
    assert attempt["outcome"] == "completed"
    assert attempt["usage"] == result["usage"]
    assert attempt["server"] == service.settings.triton_urls[0]


async def test_the_same_seed_gives_the_same_text(service: Service) -> None:
    first = await service.run(seed=11, max_tokens=30)
    second = await service.run(seed=11, max_tokens=30)
    other = await service.run(seed=12, max_tokens=30)
    assert first["output"] == second["output"] != other["output"]


async def test_max_tokens_has_the_default_of_the_settings(service: Service) -> None:
    result = await service.run(model="noop")
    assert result["parameters"]["max_tokens"] == service.settings.default_max_tokens


async def test_several_choices_come_back_apart(service: Service) -> None:
    result = await service.run(n=3, max_tokens=10, seed=1)
    assert [choice["index"] for choice in result["outputs"]] == [0, 1, 2]
    assert result["outputs"][0]["text"] == result["output"]
    assert all(choice["text"] and choice["finish_reason"] for choice in result["outputs"])
    assert 3 <= result["usage"]["completion_tokens"] <= 30


async def test_logprobs_come_back_per_token(service: Service) -> None:
    result = await service.run(logprobs=2, max_tokens=5, seed=1)
    (choice,) = result["outputs"]
    assert len(choice["logprobs"]) == result["usage"]["completion_tokens"]
    assert choice["cumulative_logprob"] < 0


async def test_a_stop_text_ends_the_generation_and_is_not_in_it(service: Service) -> None:
    result = await service.run(prompt="[[sim:emit=one two three four]]", stop="three", max_tokens=50)
    assert result["output"].rstrip() == "one two"
    assert result["finish_reason"] == "stop"


async def test_structured_outputs_reach_the_engine(service: Service) -> None:
    result = await service.run(structured_outputs={"choice": ["yes", "no"]}, max_tokens=20)
    assert result["output"] in ("yes", "no")


async def test_text_that_postgres_cannot_hold_is_stored_with_a_substitute(service: Service) -> None:
    result = await service.run(prompt=r"[[sim:emit=a\u0000b]]", max_tokens=50, logprobs=1)
    assert result["error"] is None
    assert result["output"] == "a\ufffdb"


@pytest.mark.parametrize("wait", ["wait=30", "respond-async, wait=30", 'wait="30"', "WAIT=30;x=1"])
async def test_a_long_poll_returns_as_soon_as_the_result_is_final(service: Service, wait: str) -> None:
    id_ = await service.send(parameters={"max_tokens": 10})
    answer = await service.client.get(f"/results/{id_}", headers={"Prefer": wait})
    assert answer.json()["status"] == "completed"
    assert answer.headers["preference-applied"] == "wait=30"
    ended = datetime.fromisoformat(answer.json()["completed_at"]).timestamp()
    assert time.time() - ended < 1.5


async def test_a_long_poll_ends_with_the_state_as_it_is(api: Service) -> None:
    id_ = await api.send()
    started = time.monotonic()
    answer = await api.client.get(f"/results/{id_}", headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - started < 5
    assert answer.json()["status"] == "pending"
    assert answer.json()["phase"] == "queued"
    assert answer.headers["retry-after"]


@pytest.mark.parametrize("prefer", ["wait", "wait=", "wait=x", "wait=-1", "handling=lenient"])
async def test_other_preferences_are_ignored(api: Service, prefer: str) -> None:
    id_ = await api.send()
    answer = await api.client.get(f"/results/{id_}", headers={"Prefer": prefer})
    assert answer.status_code == 200
    assert "preference-applied" not in answer.headers


async def test_wait_is_capped(api: Service) -> None:
    id_ = await api.send()
    cancelled = await api.client.post(f"/results/{id_}/cancel")
    assert cancelled.json()["status"] == "failed"
    answer = await api.client.get(f"/results/{id_}", headers={"Prefer": "wait=900"})
    assert answer.headers["preference-applied"] == "wait=60"


async def test_a_client_that_goes_away_cancels_nothing(service: Service) -> None:
    id_ = await service.send(model="slow", parameters={"max_tokens": 30})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(service.result(id_, wait=30), 0.3)
    assert (await service.settled(id_))["status"] == "completed"


async def test_each_filter_finds_its_own(api: Service) -> None:
    one, two = await api.context("one"), await api.context("two")
    first = await api.send(one, client_reference="alpha")
    second = await api.send(two, model="noop")
    third = await api.send(two, client_reference="beta")
    await api.client.post(f"/results/{third}/cancel")

    async def found(**params: str) -> list[str]:
        answer = await api.client.get("/results/", params=params)
        assert answer.status_code == 200, answer.text
        return [result["id"] for result in answer.json()]

    assert await found() == [third, second, first]
    assert await found(status="pending") == [second, first]
    assert await found(status="failed") == [third]
    assert await found(model="noop") == [second]
    assert await found(context_id=two) == [third, second]
    assert await found(client_reference="alpha") == [first]
    assert await found(model="tiny", status="failed", client_reference="beta") == [third]
    assert await found(client_reference="gamma") == []


async def test_filters_stay_in_the_link_to_the_next_page(api: Service) -> None:
    context = await api.context()
    wanted = [await api.send(context, client_reference="mine") for _ in range(3)]
    await api.send(context, client_reference="other")
    page = await api.client.get("/results/", params={"client_reference": "mine", "limit": 2})
    rest = await api.client.get(page.links["next"]["url"])
    assert [result["id"] for result in page.json() + rest.json()] == wanted[::-1]


async def test_a_queued_result_is_cancelled_at_once_and_for_good(api: Service) -> None:
    id_ = await api.send()
    first = (await api.client.post(f"/results/{id_}/cancel")).json()
    assert first["status"] == "failed"
    assert first["error"]["code"] == "cancelled"
    assert first["cancellation"]["requested_at"]
    assert first["cancellation"]["engine_stopped_at"] is None
    assert (await api.client.post(f"/results/{id_}/cancel")).json() == first


async def test_a_finished_result_is_not_cancelled(service: Service) -> None:
    done = await service.run(max_tokens=5)
    answer = await service.client.post(f"/results/{done['id']}/cancel")
    assert answer.json() == done


async def test_a_running_result_is_cancelled_through_the_engine(service: Service, triton: RunningTriton) -> None:
    before = await generated(triton, "slow")
    id_ = await service.send(model="slow", parameters={"max_tokens": 2000, "ignore_eos": True}, stream=True)

    async def under_way() -> bool:
        return await generated(triton, "slow") > before + 3

    await eventually(under_way, "tokens flow")
    answer = (await service.client.post(f"/results/{id_}/cancel")).json()
    assert answer["phase"] == "cancelling" or answer["status"] == "failed"
    result = await service.settled(id_)
    assert (result["status"], result["error"]["code"]) == ("failed", "cancelled")
    assert result["cancellation"]["engine_stopped_at"] >= result["cancellation"]["requested_at"]
    assert result["output"]
    assert result["usage"]["completion_tokens"] > 0
    (attempt,) = await service.attempts(id_)
    assert attempt["outcome"] == "cancelled"


async def test_what_was_not_streamed_is_not_kept_by_a_cancel_and_says_so(
    service: Service, triton: RunningTriton
) -> None:
    id_ = await service.send(model="slow", parameters={"max_tokens": 2000, "ignore_eos": True})

    async def under_way() -> bool:
        return await busy(triton, "slow") == 1

    await eventually(under_way, "the engine runs it")
    await service.client.post(f"/results/{id_}/cancel")
    result = await service.settled(id_)
    assert (result["status"], result["error"]["code"], result["output"]) == ("failed", "cancelled", None)
    assert "is not kept: send it with stream" in result["error"]["message"]
    assert result["usage"]["completion_tokens"] is None
    assert result["cancellation"]["engine_stopped_at"] >= result["cancellation"]["requested_at"]

    async def idle() -> bool:
        return await busy(triton, "slow") == 0

    await eventually(idle, "the engine is free", 5)


async def test_streamed_or_whole_the_answer_is_the_same_and_a_key_makes_one_ticket(service: Service) -> None:
    context = await service.context("A story, please.")
    parameters = {"max_tokens": 40, "seed": 7}
    whole, streamed = [
        await service.settled(await service.send(context, parameters=parameters, stream=stream))
        for stream in (False, True)
    ]
    for name in ("output", "finish_reason", "usage"):
        assert whole[name] == streamed[name]
    answers = [
        await service.client.post(
            f"/models/send/tiny/{context}", json={"stream": stream}, headers={"Idempotency-Key": "once"}
        )
        for stream in (False, True)
    ]
    assert answers[0].json()["result_id"] == answers[1].json()["result_id"]


async def test_a_result_that_nobody_runs_expires(service: Service) -> None:
    queued = await service.send(model="noop", expires_in=0.05, parameters={"max_tokens": 1})
    result = await service.settled(queued)
    assert result["status"] in ("failed", "completed")
    running = await service.send(model="slow", expires_in=0.5, parameters={"max_tokens": 2000, "ignore_eos": True})
    result = await service.settled(running)
    assert result["error"]["code"] == "expired"
    assert result["expires_at"] is not None


async def test_an_error_of_the_engine_is_a_failed_result_with_a_sentence(service: Service) -> None:
    result = await service.run(prompt="word " * 400)
    assert result["status"] == "failed"
    assert result["error"]["code"] == "prompt_too_long"
    assert "256" in result["error"]["message"]
    assert result["output"] is None
    assert result["attempt_count"] == 1
