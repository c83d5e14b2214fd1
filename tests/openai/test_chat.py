"""POST /v1/chat/completions through the official client."""

import asyncio
import base64
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import openai
import pytest
from openai import RequestOptions

from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.tasks.embed import vector
from nvidia_triton.local.settings import free_ports
from tests.engine import busy
from tests.openai.conftest import client_of
from tests.servers import RunningTriton
from tests.service import Process, Service, eventually, running_api, running_dispatcher


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def emit(text: str) -> list[Any]:
    return say(f"[[sim:emit64={base64.b64encode(text.encode()).decode()}]]")


def uuid_of(id_: str) -> str:
    digits = id_.rpartition("-")[2]
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


async def test_a_chat_is_answered_and_is_a_ticket_like_any_other(client: openai.AsyncOpenAI, service: Service) -> None:
    answer = await client.chat.completions.create(
        model="chat", messages=emit("Good morning."), metadata={"study": "a"}, user="u-1"
    )
    assert answer.choices[0].message.content == "Good morning."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    result = await service.result(uuid_of(answer.id))
    assert (result["status"], result["output"], result["model"]) == ("completed", "Good morning.", "chat")
    context = (await service.client.get(f"/contexts/{result['context_id']}")).json()
    assert context["content"].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert context["metadata"] == {"study": "a"}


async def test_a_chat_is_stored_as_it_came_and_rendered_by_the_dispatcher(
    client: openai.AsyncOpenAI, service: Service, database: Database
) -> None:
    answer = await client.chat.completions.create(model="chat", messages=emit("Stored."), max_tokens=5)
    context_id = (await service.result(uuid_of(answer.id)))["context_id"]
    async with database.hot() as connection:
        row = await connection.fetchrow("SELECT content, messages FROM contexts WHERE id = $1", UUID(context_id))
        task = await connection.fetchval("SELECT task FROM results WHERE context_id = $1", UUID(context_id))
    assert (row["content"], row["messages"], task) == (None, emit("Stored."), "generate")
    listed = (await service.client.get("/contexts/")).json()[0]
    assert listed == (await service.client.get(f"/contexts/{context_id}")).json()
    assert listed["content"].endswith("<|im_end|>\n<|im_start|>assistant\n")


async def test_a_chat_rendered_by_the_version_before_is_run_as_it_was(service: Service, database: Database) -> None:
    """So is an embedding, whose task was told by its parameters only."""
    contexts, tickets = [uuid7(), uuid7()], [uuid7(), uuid7()]
    async with database.hot() as connection:
        await connection.execute(
            "INSERT INTO contexts (id, content, messages) VALUES ($1, $3, '[]'), ($2, $4, NULL)",
            *contexts,
            emit("As it was.")[0]["content"],
            '["a text"]',
        )
        await connection.execute(
            "INSERT INTO results (id, context_id, model, parameters, kind) VALUES"
            " ($1, $3, 'tiny', '{\"max_tokens\": 40}', NULL), ($2, $4, 'embed', '{\"task\": \"embed\"}', 'embedding')",
            *tickets,
            *contexts,
        )
    chat, embedding = [await service.settled(str(id_)) for id_ in tickets]
    assert (chat["status"], chat["output"]) == ("completed", "As it was.")
    assert (embedding["status"], len(vector(embedding["output"])) > 1) == ("completed", True)
    assert (await service.client.get(f"/contexts/{contexts[0]}")).json()["content"].startswith("[[sim:emit64=")


async def test_a_chat_waits_where_the_dispatcher_has_no_template(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """It says why, no attempt is spent, and the server is not blamed."""
    async with running_api(make_settings()) as api, client_of(api) as client:
        asking = asyncio.create_task(client.chat.completions.create(model="chat", messages=emit("Later.")))
        async with running_dispatcher(make_settings(model_repository=str(tmp_path))):

            async def told() -> bool:
                results = (await api.client.get("/results/")).json()
                return bool(results and results[0]["last_error"])

            await eventually(told, "the ticket says why it waits")
            result = (await api.client.get("/results/")).json()[0]
            assert result["last_error"]["code"] == "no_chat_template"
            assert await api.attempts(result["id"]) == []
        async with running_dispatcher(make_settings()):
            assert (await asking).choices[0].message.content == "Later."


async def test_the_blocking_client_works_too(service: Service) -> None:
    def ask() -> Any:
        with openai.OpenAI(
            base_url=f"{str(service.client.base_url).rstrip('/')}/v1", api_key="none", max_retries=0
        ) as blocking:
            return blocking.chat.completions.create(model="chat", messages=emit("Yes."))

    answer = await asyncio.to_thread(ask)
    assert answer.choices[0].message.content == "Yes."


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


async def test_several_choices(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "chat", "messages": say("Tell me."), "n": 3, "seed": 7, "max_tokens": 20, "temperature": 0.9
    }  # fmt: skip
    answer = await client.chat.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = ["", "", ""]
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("alternatives", [0, 3])
async def test_logprobs(client: openai.AsyncOpenAI, alternatives: int) -> None:
    asked: dict[str, Any] = {
        "model": "chat", "messages": say("Tell me."), "logprobs": True, "top_logprobs": alternatives, "seed": 3,
        "max_tokens": 12,
    }  # fmt: skip
    answer = await client.chat.completions.create(**asked)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
    for token in logprobs.content:
        assert len(token.top_logprobs) == alternatives
        assert token.bytes == list(token.token.encode())
        if alternatives:
            assert token.token in [each.token for each in token.top_logprobs]
    streamed = [
        token
        async for chunk in await client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content or ()
    ]
    assert [token.token for token in streamed] == [token.token for token in logprobs.content]


async def test_what_the_engine_takes_arrives_there(client: openai.AsyncOpenAI, service: Service) -> None:
    answer = await client.chat.completions.create(
        model="chat",
        messages=say("Tell me."),
        temperature=0.3,
        top_p=0.8,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=11,
        stop=["zzz"],
        logit_bias={},
        max_completion_tokens=9,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True},
    )
    assert (await service.result(uuid_of(answer.id)))["parameters"] == {
        "n": 1, "temperature": 0.3, "top_p": 0.8, "presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 11,
        "stop": ["zzz"], "max_tokens": 9, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True,
    }  # fmt: skip
    assert answer.choices[0].finish_reason == "length"


async def test_a_schema_holds_the_answer(client: openai.AsyncOpenAI) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    held = await client.chat.completions.create(
        model="chat",
        messages=say("How old?"),
        response_format={"type": "json_schema", "json_schema": {"name": "age", "schema": schema}},
    )
    assert isinstance(json.loads(held.choices[0].message.content or "")["age"], int)
    free = await client.chat.completions.create(
        model="chat", messages=say("How old?"), response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(free.choices[0].message.content or ""), dict)
    guided = await client.chat.completions.create(
        model="chat", messages=say("Yes?"), extra_body={"guided_choice": ["aye", "nay"]}
    )
    assert guided.choices[0].message.content in ("aye", "nay")


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


async def test_an_answer_is_gone_on_with(client: openai.AsyncOpenAI, service: Service) -> None:
    answer = await client.chat.completions.create(
        model="chat",
        messages=[*say("Two and two?"), {"role": "assistant", "content": "Two and two make "}],
        max_tokens=3,
        extra_body={"continue_final_message": True, "priority": -7, "request_id": "mine-3"},
    )
    (result,) = (await service.client.get("/results/", params={"client_reference": "mine-3"})).json()
    assert (uuid_of(answer.id), result["priority"]) == (result["id"], 7)
    prompt = (await service.client.get(f"/contexts/{result['context_id']}")).json()["content"]
    assert prompt.endswith("<|im_start|>assistant\nTwo and two make")


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


async def test_the_same_key_gives_the_same_completion(client: openai.AsyncOpenAI) -> None:
    async def ask(text: str = "Tell me.", **more: Any) -> Any:
        return await client.chat.completions.create(
            model="chat", messages=say(text), extra_headers={"Idempotency-Key": "k-1"}, **more
        )

    first = await ask()
    assert (await ask()).model_dump() == first.model_dump()
    streamed = [chunk async for chunk in await ask(stream=True)]
    assert streamed[0].id == first.id
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == first.choices[0].message.content
    with pytest.raises(openai.BadRequestError) as other:
        await ask("Something else.")
    assert other.value.code == "idempotency_mismatch"


async def test_a_pending_answer_says_so(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    async with running_api(settings) as api:
        body = {"model": "chat", "messages": emit("Late."), "stream": False}
        asking = asyncio.create_task(
            api.client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "late"})
        )

        async def stored() -> Any:
            return (await api.client.get("/results/", params={"client_reference": "late"})).json()

        id_ = (await eventually(stored, "the ticket"))[0]["id"]
        path = f"/v1/chat/completions/chatcmpl-{id_.replace('-', '')}"
        pending = await api.client.get(path)
        assert (pending.status_code, pending.json()["error"]["code"]) == (409, "result_pending")
        assert pending.headers["retry-after"] == "1"
        async with running_dispatcher(settings):
            answer = await asking
            assert answer.json()["choices"][0]["message"]["content"] == "Late."
        assert (await api.client.get(path)).json() == answer.json()
        assert answer.headers["x-request-id"] == "late"


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
