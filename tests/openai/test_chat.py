"""POST /v1/chat/completions through the official client."""

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import openai
import pytest

from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.tasks.embed import vector
from tests.openai.conftest import client_of
from tests.service import Service, eventually, running_api, running_dispatcher


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
