"""What a follower gets is what the result holds: at once, late, afterwards, in part, from any process."""

import asyncio
import random
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest

from app.config import Settings
from app.db.engine import Database
from app.dispatch.janitor import drop_events
from app.queue.events import EventStore
from tests.service import Service, eventually, running_api, running_dispatcher
from tests.streams.follower import Follower, messages, streamed


async def running(service: Service, id_: str) -> None:
    async def runs() -> bool:
        return (await service.result(id_))["phase"] == "running"

    await eventually(runs, "it runs")


async def test_the_text_comes_in_parts_while_it_is_generated(service: Service) -> None:
    follower = await streamed(service, "[[sim:slow=50]]", max_tokens=40, ignore_eos=True)
    result = follower.check()
    assert result["status"] == "completed"
    assert result == await service.result(result["id"])
    assert len(follower.seen) > 5
    assert [message.id for message in follower.seen] == list(range(len(follower.seen)))


async def test_every_choice_and_every_logprob_comes(service: Service) -> None:
    follower = await streamed(service, "[[sim:slow=50]]", max_tokens=30, ignore_eos=True, n=3, logprobs=2)
    result = follower.check()
    assert [len(output["logprobs"]) for output in result["outputs"]] == [30] * 3
    assert len(follower.seen) > 3


async def test_characters_arrive_whole(service: Service) -> None:
    text = "Grüße 😀 ∑ 漢字 \\u0000 𝔘 é" * 5
    follower = await streamed(service, f"[[sim:emit={text}]][[sim:slow=5]][[sim:chunk=1]]", max_tokens=400)
    output = follower.check()["output"]
    assert output.count("😀") == 5
    assert output.count("\ufffd") == 5


async def test_a_late_follower_gets_everything_from_the_beginning(service: Service) -> None:
    id_ = await service.send(prompt="[[sim:slow=30]]", parameters={"max_tokens": 100, "ignore_eos": True}, stream=True)
    await running(service, id_)
    early = await Follower(id_).follow(service, most=5)
    late = await Follower(id_).follow(service)
    late.check()
    assert late.seen[:5] == early.seen
    assert len(late.seen) > 10


async def test_who_follows_what_began_without_a_stream_gets_the_text_at_its_end(service: Service, rows: Any) -> None:
    id_ = await service.send(prompt="[[sim:slow=20]]", parameters={"max_tokens": 50, "ignore_eos": True})
    await running(service, id_)
    follower = await Follower(id_).follow(service)
    assert follower.check()["usage"]["completion_tokens"] == 50
    assert [message.id for message in follower.seen] == [0]
    assert await rows.fetchval("SELECT count(*) FROM result_events") == 0


async def test_a_result_nobody_follows_stores_no_events(service: Service, rows: Any) -> None:
    await service.run(max_tokens=20)
    assert await rows.fetchval("SELECT count(*) FROM result_events") == 0


async def test_after_the_end_the_whole_text_is_one_event(service: Service) -> None:
    result = await service.run(max_tokens=20)
    follower = await Follower(result["id"]).follow(service)
    assert follower.check() == result
    assert [message.id for message in follower.seen] == [0]


async def test_whoever_has_seen_the_end_is_told_to_stop(service: Service) -> None:
    """An EventSource reconnects whenever a stream ends, unless it is answered with 204."""
    follower = await streamed(service, "Hello.", max_tokens=5)
    follower.check()
    url = f"/results/{follower.result_id}/stream"
    last = follower.seen[-1].id
    assert last is not None
    again = await service.client.get(url, headers={"Last-Event-ID": str(last)})
    assert again.text.count("event: ") == 1
    assert "event: completed" in again.text
    assert (await service.client.get(url, headers={"Last-Event-ID": str(last + 1)})).status_code == 204
    beyond = await service.client.get(url, params={"starting_after": last + 2})
    assert (beyond.status_code, beyond.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "99999999999", "²", ""])
async def test_a_cursor_that_is_none_is_refused(service: Service, cursor: str) -> None:
    id_ = await service.send()
    answer = await service.client.get(f"/results/{id_}/stream", headers={"Last-Event-ID": cursor.encode("latin-1")})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_there_is_nothing_to_follow_under_an_unknown_id(service: Service) -> None:
    answer = await service.client.get(f"/results/{uuid4()}/stream")
    assert (answer.status_code, answer.json()["code"]) == (404, "result_not_found")


async def test_a_strangers_stream_is_not_found(service: Service, rows: Any) -> None:
    id_ = await service.send()
    await service.settled(id_)
    await rows.execute("INSERT INTO owners (id, name) VALUES (7, 'stranger')")
    await rows.execute("UPDATE results SET owner_id = 7")
    answer = await service.client.get(f"/results/{id_}/stream")
    assert (answer.status_code, answer.json()["code"]) == (404, "result_not_found")
    assert not await rows.fetchval("SELECT streamed FROM results")


async def test_a_cancel_ends_the_stream_with_what_was_generated(service: Service) -> None:
    id_ = await service.send(prompt="[[sim:slow=20]]", parameters={"max_tokens": 2000, "ignore_eos": True}, stream=True)
    follower = await Follower(id_).follow(service, most=5)
    await service.client.post(f"/results/{id_}/cancel")
    result = (await follower.follow(service)).check()
    assert (result["status"], result["error"]["code"]) == ("failed", "cancelled")
    assert result["output"]


async def test_a_failure_ends_the_stream(service: Service) -> None:
    follower = await streamed(service, "[[sim:error=This model's maximum context length is 1 tokens.]]")
    assert follower.check()["error"]["code"] == "prompt_too_long"
    assert follower.seen == []


async def test_a_ticket_can_be_followed_before_anything_runs_it(
    make_settings: Callable[..., Settings], rows: Any
) -> None:
    settings = make_settings()
    async with running_api(settings) as service:
        id_ = await service.send(prompt="[[sim:slow=50]]", parameters={"max_tokens": 30, "ignore_eos": True})
        following = asyncio.create_task(Follower(id_).follow(service))

        async def begun() -> bool:
            return bool(await rows.fetchval("SELECT streamed FROM results"))

        await eventually(begun, "it is followed")
        async with running_dispatcher(settings):
            follower = await following
        follower.check()
        assert len(follower.seen) > 3


async def test_cut_anywhere_and_resumed_nothing_is_lost_or_repeated(service: Service) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)

    async def one() -> None:
        id_ = await service.send(
            prompt="[[sim:slow=10]]",
            parameters={"max_tokens": 120, "ignore_eos": True, "n": 2, "logprobs": 1},
            stream=True,
        )
        follower = Follower(id_)
        while follower.result is None:
            await follower.follow(service, most=draw.randint(1, 6))
        follower.check()

    await asyncio.gather(*(one() for _ in range(8)))


async def test_all_processes_and_all_times_tell_the_same_sequences(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_api(settings))
        second = await stack.enter_async_context(running_api(settings))
        await stack.enter_async_context(running_dispatcher(settings))
        id_ = await first.send(prompt="[[sim:slow=10]]", parameters={"max_tokens": 80, "ignore_eos": True}, stream=True)
        followers = await asyncio.gather(
            *(Follower(id_).follow(service) for service in (first, second) for _ in range(3))
        )
        followers.append(await Follower(id_).follow(second))
        for follower in followers:
            follower.check()
            assert follower.seen == followers[0].seen


async def test_events_are_dropped_some_time_after_the_end(
    make_settings: Callable[..., Settings], database: Database, rows: Any
) -> None:
    settings = make_settings(stream_retention_seconds=1.5)
    async with running_api(settings) as service, running_dispatcher(settings):
        old = await streamed(service, "[[sim:slow=10]]", max_tokens=30, ignore_eos=True)
        young_id = await service.send(
            prompt="[[sim:slow=20]]", parameters={"max_tokens": 3000, "ignore_eos": True}, stream=True
        )
        young = await Follower(young_id).follow(service, most=3)
        url, params = f"/results/{old.result_id}/stream", {"starting_after": 0}

        async def expired() -> bool:
            return (await service.client.get(url, params=params)).status_code == 410

        await eventually(expired, "the stream cannot be resumed any longer")
        assert (await service.client.get(url, params=params)).json()["code"] == "stream_expired"
        assert await rows.fetchval("SELECT count(*) FROM result_events WHERE result_id = $1", old.result_id) > 3
        assert await drop_events(EventStore(database), 1.5) >= len(old.seen) - 1
        assert await rows.fetchval("SELECT count(*) FROM result_events WHERE result_id = $1", old.result_id) == 0

        whole = await Follower(old.result_id).follow(service)
        assert whole.check() == old.result
        assert len(whole.seen) == 1
        await service.client.post(f"/results/{young_id}/cancel")
        (await young.follow(service)).check()


async def test_a_client_that_goes_away_leaves_nothing_behind(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings):

        async def followers() -> float:
            text = (await service.client.get("/metrics")).text
            return float(re.search(r"^tickets_stream_followers (\S+)", text, re.MULTILINE)[1])  # type: ignore[index]

        before = await followers()
        id_ = await service.send(
            prompt="[[sim:slow=20]]", parameters={"max_tokens": 3000, "ignore_eos": True}, stream=True
        )
        async with service.client.stream("GET", f"/results/{id_}/stream") as answer:
            reading = messages(answer)
            await anext(reading)
            assert await followers() == before + 1

        async def left() -> bool:
            return await followers() == before

        await eventually(left, "the stream is forgotten")
        assert (await service.result(id_))["status"] == "pending"
        await service.client.post(f"/results/{id_}/cancel")


async def test_hundreds_of_followers_of_one_result_share_its_reads(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings):
        id_ = await service.send(
            prompt="[[sim:slow=20]]", parameters={"max_tokens": 60, "ignore_eos": True}, stream=True
        )
        followers = await asyncio.gather(*(Follower(id_).follow(service) for _ in range(90)))
        for follower in followers:
            follower.check()
            assert follower.seen[-1] == followers[0].seen[-1]


async def test_streams_go_on_while_every_notification_is_lost(
    make_settings: Callable[..., Settings], rows: Any
) -> None:
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings):

        async def cut() -> None:
            while True:
                await rows.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                )
                await asyncio.sleep(0.05)

        cutting = asyncio.create_task(cut())
        try:
            id_ = await service.send(
                prompt="[[sim:slow=30]]", parameters={"max_tokens": 150, "ignore_eos": True}, stream=True
            )
            await running(service, id_)
            follower = await Follower(id_).follow(service)
        finally:
            cutting.cancel()
            await asyncio.gather(cutting, return_exceptions=True)
        follower.check()
        assert len(follower.seen) > 2
