"""Streams of POST /v1/chat/completions, and what becomes of a chat whose reader leaves."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import RequestOptions

from app.config import Settings
from nvidia_triton.local.settings import free_ports
from tests.engine import busy
from tests.openai.conftest import client_of
from tests.openai.test_chat import emit, uuid_of
from tests.servers import RunningTriton
from tests.service import Process, Service, eventually, running_api, running_dispatcher


async def test_a_stream_says_what_the_answer_says(client: openai.AsyncOpenAI) -> None:
    text = "Grüße, 世界! 🙂 " * 30
    stream = await client.chat.completions.create(
        model="chat", messages=emit(text), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 30
    assert len({chunk.id for chunk in chunks}) == 1
    again = (await client.get(f"/chat/completions/{chunks[0].id}", cast_to=dict[str, Any]))["choices"][0]
    assert again["message"]["content"] == text


async def test_a_client_that_goes_away_cancels_nothing_unless_it_asks_so(
    service: Service, triton: RunningTriton
) -> None:
    async def left(reference: str, tokens: int, **headers: str) -> str:
        body = {"model": "slow", "prompt": "x", "max_tokens": tokens, "ignore_eos": True, "seed": 1}

        async def found() -> Any:
            return (await service.client.get("/results/", params={"client_reference": reference})).json()

        async with client_of(service) as hasty:
            options: RequestOptions = {"headers": {"X-Request-Id": reference, **headers}}
            asking = asyncio.create_task(hasty.post("/completions", cast_to=object, body=body, options=options))
            results = await eventually(found, "the request arrives")
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        return str(results[0]["id"])

    kept = await service.settled(await left("goes-on", 100))
    assert (kept["status"], kept["usage"]["completion_tokens"]) == ("completed", 100)
    again = await service.client.get(f"/v1/completions/cmpl-{kept['id'].replace('-', '')}")
    assert again.json()["choices"][0]["text"] == kept["output"]
    gone = await service.settled(await left("stops", 3000, **{"X-Cancel-On-Disconnect": "true"}))
    assert gone["error"]["code"] == "cancelled"


async def test_a_stream_that_is_left_can_cancel(service: Service, triton: RunningTriton) -> None:
    body = {"model": "slow", "prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    async with service.client.stream(
        "POST", "/v1/completions", json=body, headers={"X-Cancel-On-Disconnect": "true"}
    ) as answer:
        lines = answer.aiter_lines()
        first = json.loads((await _data(lines)).removeprefix("data: "))
    result = await service.settled(uuid_of(first["id"]))
    assert result["error"]["code"] == "cancelled"

    async def idle() -> bool:
        return await busy(triton, "slow") == 0

    await eventually(idle, "the engine stops")


async def _data(lines: Any) -> str:
    async for line in lines:
        if line.startswith("data: "):
            return str(line)
    raise AssertionError("the stream ended")


def events_of(text: str) -> list[tuple[int | None, str]]:
    """The id and data of each event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((int(fields["id"]) if "id" in fields else None, fields["data"]))
    return found


@pytest.mark.parametrize("how", ["query", "header"])
async def test_a_stream_goes_on_where_it_was_cut(service: Service, how: str) -> None:
    body = {"model": "slow", "prompt": "Tell me.", "max_tokens": 30, "seed": 5, "ignore_eos": True, "stream": True}
    whole = events_of((await service.client.post("/v1/completions", json=body)).text)
    assert whole[-1][1] == "[DONE]"
    id_ = json.loads(whole[0][1])["id"]
    ids = [number for number, _ in whole if number is not None]
    assert ids == sorted(set(ids))
    assert len(ids) > 3
    for cut in ids:
        place = max(place for place, (number, _) in enumerate(whole) if number == cut)
        params: dict[str, Any] = {"stream": "true"}
        headers = {}
        if how == "query":
            params["starting_after"] = cut
        else:
            headers["Last-Event-ID"] = str(cut)
        rest = await service.client.get(f"/v1/completions/{id_}", params=params, headers=headers)
        assert [data for _, data in events_of(rest.text)] == [data for _, data in whole[place + 1 :]]
    params = {"stream": "true", "include_usage": "true"}
    counted = events_of((await service.client.get(f"/v1/completions/{id_}", params=params)).text)
    assert json.loads(counted[-2][1])["usage"]["completion_tokens"] == 30


async def test_each_chunk_tells_the_usage_so_far(client: openai.AsyncOpenAI) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    stream = await client.chat.completions.create(model="chat", messages=emit("One two three. " * 30), **options)
    *chunks, last = [chunk async for chunk in stream]
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert last.usage is not None
    assert len(counts) > 1
    assert counts == sorted(counts)
    assert chunks[-1].usage == last.usage
    # What each of several came to is not kept: their last chunks leave it to the one at the end.
    several = await client.completions.create(model="tiny", prompt="Tell me.", max_tokens=20, n=2, seed=1, **options)
    *chunks, last = [chunk async for chunk in several]
    assert last.usage is not None
    for chunk in chunks:
        assert chunk.usage is None or chunk.usage.completion_tokens <= last.usage.completion_tokens
        assert not chunk.choices[0].finish_reason or chunk.usage is None


async def test_a_process_that_stops_says_where_the_answer_will_be(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    async with running_api(settings) as stays:
        async with running_api(settings) as stops:
            url = stops.client.base_url.join("/v1/chat/completions")
            asking = asyncio.create_task(stays.client.post(url, json={"model": "chat", "messages": emit("Kept.")}))

            async def stored() -> Any:
                return (await stays.client.get("/results/")).json()

            await eventually(stored, "the ticket")
        answer = await asking
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["code"] == "service_stopping"
        assert answer.headers["x-should-retry"] == "false"
        id_ = (await stays.client.get("/results/")).json()[0]["id"]
        assert f"chatcmpl-{id_.replace('-', '')}" in error["message"]
        async with running_dispatcher(settings):
            assert (await stays.settled(id_))["output"] == "Kept."


async def test_a_stream_of_a_process_that_stops_goes_on_at_another(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    body = {"model": "slow", "prompt": "Tell me.", "max_tokens": 60, "ignore_eos": True, "stream": True}
    async with running_api(settings) as stays, running_dispatcher(settings):
        async with Process("app.main", make_settings(api_port=port), tmp_path / "api.log") as stops:

            async def listens() -> bool:
                try:
                    return (await stays.client.get(f"{url}/health/live")).status_code == 200
                except httpx.ConnectError:
                    return False

            await eventually(listens, "the other process listens")
            async with stays.client.stream("POST", f"{url}/v1/completions", json=body) as answer:
                text, asked = "", False
                async for part in answer.aiter_text():
                    text += part
                    if text.count("id: ") > 2 and not asked:
                        asked = True
                        stops.signal(signal.SIGTERM)
            await stops.ended()
        begun = events_of(text)
        assert json.loads(begun[-2][1])["error"]["code"] == "service_stopping"
        id_ = json.loads(begun[0][1])["id"]
        after = max(number for number, _ in begun if number is not None)
        rest = await stays.client.get(
            f"/v1/completions/{id_}", params={"stream": "true"}, headers={"Last-Event-ID": str(after)}
        )
        said = [
            choice["text"]
            for _, data in [*begun[:-2], *events_of(rest.text)[:-1]]
            for choice in json.loads(data)["choices"]
        ]
        result = await stays.settled(uuid_of(id_))
        assert "".join(said) == result["output"]
