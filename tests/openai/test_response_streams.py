"""Streams of /v1/responses: their events, and how one that was cut goes on."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from app.config import Settings
from tests.openai.conftest import client_of
from tests.openai.response_kit import CALL, LONG, WEATHER, emit, events_of
from tests.service import Process, Service, eventually, running_api, running_dispatcher


async def test_a_stream_tells_the_response_in_openais_order(client: openai.AsyncOpenAI, service: Service) -> None:
    body = {"model": "chat", "input": emit(LONG, "slow=10"), "stream": True}
    events = events_of((await service.client.post("/v1/responses", json=body)).text)
    kinds = [event["type"] for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 3
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    assert "".join(event["delta"] for event in events if "delta" in event) == LONG
    response = events[-1]["response"]
    assert (await client.responses.retrieve(response["id"])).to_dict() == response
    assert events[-2]["item"] == response["output"][0]


async def test_the_clients_own_stream_accepts_it(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="chat", input=emit(f"One moment.{CALL}"), tools=[WEATHER]) as stream:  # type: ignore[list-item]
        texts = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert texts[-1] == "One moment."
    assert [item.type for item in final.output] == ["message", "function_call"]


async def test_a_background_stream_can_be_left_and_read_again(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="chat", input=emit(LONG, "slow=20"), background=True, stream=True)
    said, id_, last = "", "", -1
    async for event in stream:
        last = event.sequence_number
        if event.type == "response.created":
            id_, status = event.response.id, event.response.status
        if event.type == "response.output_text.delta":
            said += event.delta
            break
    await stream.close()
    assert status == "queued"
    assert (await client.responses.retrieve(id_)).status == "in_progress"
    async for event in await client.responses.retrieve(id_, stream=True, starting_after=last):
        assert event.sequence_number > last
        if event.type == "response.output_text.delta":
            said += event.delta
    assert said == LONG


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["text", "tools"])
async def test_a_stream_goes_on_after_any_event_from_any_process(
    service: Service, make_settings: Callable[..., Settings], tools: list[Any]
) -> None:
    body = {"model": "chat", "input": emit(f"{LONG}{CALL}{CALL}" if tools else LONG, "slow=8"), "tools": tools}
    whole = events_of((await service.client.post("/v1/responses", json=body | {"stream": True})).text)
    path = f"/v1/responses/{whole[0]['response']['id']}"
    async with running_api(make_settings()) as other:
        for place, event in enumerate(whole):
            number = event["sequence_number"]
            for api in (service, other):
                rest = await api.client.get(path, params={"stream": "true", "starting_after": number})
                assert events_of(rest.text) == whole[place + 1 :]
        by_header = await other.client.get(
            path, params={"stream": "true"}, headers={"Last-Event-ID": str(whole[3]["sequence_number"])}
        )
        assert events_of(by_header.text) == whole[4:]
    assert len(whole) > 10


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["text", "tools"])
async def test_a_stream_that_is_cut_again_and_again_while_it_runs_loses_nothing(
    client: openai.AsyncOpenAI, service: Service, make_settings: Callable[..., Settings], tools: list[Any]
) -> None:
    draw = random.Random(5)
    text = f"{LONG}{CALL}" if tools else LONG
    made = await client.responses.create(model="chat", input=emit(text, "slow=15"), background=True, tools=tools)
    seen: list[dict[str, Any]] = []
    cuts = 0
    async with running_api(make_settings()) as other, client_of(other) as elsewhere:
        while not seen or seen[-1]["type"] != "response.completed":
            after = {"starting_after": seen[-1]["sequence_number"]} if seen else {}
            stream = await draw.choice((client, elsewhere)).responses.retrieve(made.id, stream=True, **after)
            left = draw.randrange(1, 6)
            async for event in stream:
                seen.append(event.to_dict())
                left -= 1
                if not left:
                    break
            await stream.close()
            cuts += 1
    assert cuts > 3
    numbers = [event["sequence_number"] for event in seen]
    assert numbers == sorted(set(numbers))
    whole = (await service.client.get(f"/v1/responses/{made.id}", params={"stream": "true"})).text
    assert seen == events_of(whole)
    assert "".join(event["delta"] for event in seen if event["type"].endswith("text.delta")) == LONG[
        : len(LONG)
    ].rstrip(" " if tools else "")


async def test_a_stream_whose_events_are_gone_is_not_gone_on_with(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(stream_retention_seconds=0.5)
    async with running_api(settings) as api, running_dispatcher(settings):
        body = {"model": "chat", "input": emit(LONG), "stream": True}
        whole = events_of((await api.client.post("/v1/responses", json=body)).text)
        path = f"/v1/responses/{whole[0]['response']['id']}"

        async def expired() -> Any:
            answer = await api.client.get(path, params={"stream": "true", "starting_after": 5})
            return answer if answer.status_code == 410 else None

        refused = await eventually(expired, "the events are gone")
        assert refused.json()["error"]["code"] == "stream_expired"
        again = events_of((await api.client.get(path, params={"stream": "true"})).text)
        assert [event["delta"] for event in again if "delta" in event] == [LONG]
        assert again[-1]["response"] == whole[-1]["response"]


@pytest.mark.parametrize("same", [True, False])
async def test_another_attempt_goes_on_or_is_told_to_say_something_else(
    make_settings: Callable[..., Settings], tmp_path: Path, same: bool
) -> None:
    settings = make_settings(lease_seconds=1.0)
    body = {"model": "chat", "input": "[[sim:slow=20]]", "max_output_tokens": 60, "ignore_eos": True, "stream": True}
    body |= {"seed": 5} if same else {"temperature": 1.0}
    async with running_api(settings) as api:
        async with Process("app.worker", settings, tmp_path / "dispatcher.log") as first:
            await first.says("dispatching")
            async with api.client.stream("POST", "/v1/responses", json=body) as answer:
                text = ""
                async for part in answer.aiter_text():
                    text += part
                    if text.count("text.delta") > 8:
                        break
                seen = events_of(text.rpartition("\n\n")[0])
                first.kill()
        path = f"/v1/responses/{seen[0]['response']['id']}"
        last = seen[-1]["sequence_number"]
        async with running_dispatcher(settings):
            rest = await api.client.get(path, params={"stream": "true", "starting_after": last})
            late = await api.client.get(path, params={"stream": "true", "starting_after": last})
            whole = events_of((await api.client.get(path, params={"stream": "true"})).text)
        assert whole[-1]["type"] == "response.incomplete"
        said = "".join(event["delta"] for event in whole if "delta" in event)
        assert said == whole[-1]["response"]["output"][0]["content"][0]["text"]
        if same:
            assert seen + events_of(rest.text) == whole
        else:
            for told in (events_of(rest.text)[-1], *events_of(late.text)):
                assert (told["type"], told["code"]) == ("error", "stream_restarted")
            assert events_of(late.text)[0]["sequence_number"] == last
