"""/v1/conversations through the official client."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.conversations import Conversation

from app.config import Settings
from app.db.engine import Database
from app.dispatch.janitor import forget_unkept
from app.openai.conversation_items import items_of_turn
from app.queue.unkept import UnkeptStore
from app.services import conversations as service_of_conversations
from app.services.conversations import Conversations
from tests.openai.batch_kit import ended as batch_ended
from tests.openai.batch_kit import line, start
from tests.openai.conftest import client_of
from tests.openai.response_kit import CALL, WEATHER, emit, ended, prompt_of
from tests.service import Service, running_api, running_dispatcher

HELLO: dict[str, Any] = {"role": "user", "content": "Hello."}


async def texts_of(client: openai.AsyncOpenAI, conversation: Conversation) -> list[str]:
    """Role and text of each message, or the type of another item, oldest first; read in small pages."""
    found = []
    async for item in client.conversations.items.list(conversation.id, order="asc", limit=2):
        told = item.to_dict()
        content: Any = told.get("content")
        found.append(f"{told['role']}: {content[0]['text']}" if told["type"] == "message" else told["type"])
    return found


async def test_a_conversation_has_items(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create(items=[HELLO], metadata={"topic": "tests"})  # type: ignore[list-item]
    assert (made.object, made.metadata) == ("conversation", {"topic": "tests"})
    added = await client.conversations.items.create(
        made.id,
        items=[
            {"type": "message", "role": "assistant", "content": "Hi."},  # type: ignore[list-item]
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "Rain"},
        ],
    )
    assert [item.type for item in added.data] == ["message", "function_call", "function_call_output"]
    assert await texts_of(client, made) == ["user: Hello.", "assistant: Hi.", "function_call", "function_call_output"]
    page = await client.conversations.items.list(made.id, limit=1)
    assert (page.has_more, page.data[0].id) == (True, added.last_id)
    assert added.last_id == (await client.conversations.items.retrieve(added.last_id, conversation_id=made.id)).id
    assert await client.conversations.items.delete(added.last_id, conversation_id=made.id) == made
    assert (await client.conversations.items.list(made.id, limit=3)).has_more is False
    changed = await client.conversations.update(made.id, metadata={"topic": "others"})
    assert (
        changed
        == await client.conversations.retrieve(made.id)
        == made.model_copy(update={"metadata": {"topic": "others"}})
    )
    assert (await client.conversations.delete(made.id)).deleted
    for gone in (
        client.conversations.retrieve(made.id),
        client.conversations.items.retrieve("x", conversation_id=made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await gone


async def test_each_turn_adds_its_input_and_its_output(client: openai.AsyncOpenAI, service: Service) -> None:
    talk = await client.conversations.create(items=[HELLO])  # type: ignore[list-item]
    asked: Any = {"model": "chat", "conversation": talk.id}
    first = await client.responses.create(**asked, input=emit("One."), instructions="Be kind.")
    assert first.conversation is not None
    assert first.conversation.id == talk.id
    stream = await client.responses.create(
        **asked, input=[{"role": "user", "content": emit("Two.")}], stream=True, store=False
    )
    assert [event.type async for event in stream][-1] == "response.completed"
    third = await client.responses.create(
        **asked | {"conversation": {"id": talk.id}}, input=emit("Three."), background=True
    )
    await ended(client, third.id)
    assert await texts_of(client, talk) == [
        *("user: Hello.", f"user: {emit('One.')}", "assistant: One.", f"user: {emit('Two.')}", "assistant: Two."),
        *(f"user: {emit('Three.')}", "assistant: Three."),
    ]
    prompt = await prompt_of(service, third.id)
    places = [prompt.index(text) for text in ("Hello.", "One.", "Two.")]
    assert places == sorted(places)
    # Instructions are of one turn.
    assert "Be kind." not in prompt
    # What it took stays when the response goes.
    await client.responses.delete(third.id)
    assert len(await texts_of(client, talk)) == 7


async def test_calls_and_what_they_came_to_are_items(client: openai.AsyncOpenAI) -> None:
    talk = await client.conversations.create()
    asked: Any = {"model": "chat", "conversation": talk.id, "tools": [WEATHER]}
    first = await client.responses.create(**asked, input=emit(f"One moment.\n{CALL}"))
    call = first.output[-1]
    assert call.type == "function_call"
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
    await client.responses.create(**asked, input=[output, {"role": "user", "content": emit("It rains.")}])
    told = await texts_of(client, talk)
    assert [text.split(":")[0] for text in told] == [
        *("user", "assistant", "function_call", "function_call_output", "user", "assistant"),
    ]
    ids = {item.id async for item in client.conversations.items.list(talk.id)}
    assert {item.id for item in first.output} < ids  # type: ignore[attr-defined]


async def test_the_same_key_adds_one_turn(client: openai.AsyncOpenAI) -> None:
    talk = await client.conversations.create()

    async def ask() -> str:
        answer = await client.responses.create(
            model="chat", input=emit("Once."), conversation=talk.id, extra_headers={"Idempotency-Key": "turn"}
        )
        return answer.id

    assert await ask() == await ask()
    assert await texts_of(client, talk) == [f"user: {emit('Once.')}", "assistant: Once."]


async def test_a_turn_that_fails_adds_nothing(client: openai.AsyncOpenAI) -> None:
    talk = await client.conversations.create()
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="chat", input="too long " * 5000, conversation=talk.id, store=False)
    assert await texts_of(client, talk) == []


async def test_nobody_need_read_it(make_settings: Callable[..., Settings], database: Database) -> None:
    """What a turn adds is there before its texts go, and a conversation that was removed takes nothing."""
    settings = make_settings()
    conversations = Conversations(database, settings, items_of_turn)
    async with running_api(settings) as service, client_of(service, timeout=1) as client:
        talks = [await client.conversations.create() for _ in range(2)]
        for talk in talks:
            with pytest.raises(openai.APITimeoutError):
                await client.responses.create(model="chat", input=emit("Hi."), conversation=talk.id, store=False)
        await client.conversations.delete(talks[1].id)
        async with running_dispatcher(settings):
            for row in (await service.client.get("/results/")).json():
                await service.settled(row["id"])
        await forget_unkept(UnkeptStore(database), 0)
        await conversations.catch_up(0)
        await forget_unkept(UnkeptStore(database), 0)
        rows = (await service.client.get("/results/")).json()
        assert [row["output"] for row in rows] == [None, None]
        assert await texts_of(client, talks[0]) == [f"user: {emit('Hi.')}", "assistant: Hi."]
        await conversations.remove_old(1)
        await client.conversations.retrieve(talks[0].id)
        await conversations.remove_old(0)
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve(talks[0].id)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("conversations", {"items": [{"type": "web_search_call"}]}, "items[0].type"),
        ("conversations", {"items": [{"role": "user"}]}, "items[0].content"),
        ("conversations", {"items": [HELLO] * 21}, "items"),
        ("conversations", {"metadata": {"a": 1}}, "metadata.a"),
        ("conversations", {"title": "x"}, "title"),
        ("responses", {"model": "chat", "input": "x", "conversation": "x"}, "conversation"),
        ("responses", {"model": "chat", "input": "x", "conversation": {"id": "conv_" + "0" * 32}}, "conversation"),
        (
            "responses",
            {"model": "chat", "input": "x", "conversation": "conv_" + "0" * 32, "previous_response_id": "resp_1"},
            "conversation",
        ),
    ],
)
async def test_what_cannot_be_done_is_refused(api: Service, path: str, body: Any, param: str) -> None:
    answer = await api.client.post(f"/v1/{path}", json=body)
    missing = path == "responses" and "previous_response_id" not in body
    assert answer.status_code == (404 if missing else 400), answer.text
    assert answer.json()["error"]["param"] == param
    assert (await api.client.get("/results/")).json() == []


async def test_a_conversation_has_a_bound(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    monkeypatch.setattr(service_of_conversations, "MOST_ITEMS", 2)
    talk = await client.conversations.create(items=[HELLO, HELLO])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError) as refused:
        await client.conversations.items.create(talk.id, items=[HELLO])  # type: ignore[list-item]
    assert refused.value.code == "conversation_too_long"
    assert len(await texts_of(client, talk)) == 2
    await client.responses.create(model="chat", input=emit("Hi."), conversation=talk.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="chat", input="x", conversation=talk.id)
    assert (refused.value.code, refused.value.param) == ("conversation_too_long", "conversation")


async def test_batches_have_no_conversations(client: openai.AsyncOpenAI) -> None:

    talk = await client.conversations.create()
    body = {"model": "chat", "input": "x", "conversation": talk.id}
    batch = await batch_ended(client, await start(client, [line("a", body, "/v1/responses")], "/v1/responses"))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert batch.errors.data[0].param == "body.conversation"
