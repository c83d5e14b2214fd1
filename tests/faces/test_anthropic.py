"""/v1/messages through Anthropic's own client, and on the wire where that hides something."""

import base64
import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from app.anthropic.stops import StopSequences
from app.config import Settings
from app.db.engine import Database
from app.services.audit import Actor
from app.services.keys import Keys, NewKey
from tests.faces.conftest import url_of
from tests.faulty_http import Asked, event, faulty_server, finish, head, text
from tests.servers import TEST_MODELS
from tests.service import Service, eventually, running_api, running_dispatcher
from tests.tokenizer import trained

TOLD = "<think>\nTwo and two.\n</think>\n\nFour."
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a place",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"place": "Paris"}}</tool_call>'
PIXEL = base64.b64encode(b"a picture").decode()


def client_of(service: Service, **options: Any) -> anthropic.AsyncAnthropic:
    given: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 180} | options
    return anthropic.AsyncAnthropic(base_url=url_of(service), **given)


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with client_of(service) as opened:
        yield opened


@pytest_asyncio.fixture
async def thinking(make_settings: Callable[..., Settings], tmp_path: Path) -> AsyncIterator[Service]:
    """The same model with a parser of its reasoning, a template that shows how it is told to think, and a tokenizer."""
    shutil.copytree(TEST_MODELS / "chat", tmp_path / "chat")
    folder = tmp_path / "chat" / "1"
    (folder / "parsers.json").write_text('{"reasoning": "qwen3", "tool_calls": "hermes"}')
    with (folder / "chat_template.jinja").open("a") as template:
        template.write("{{ '[thinks: %s, %s]' % (enable_thinking, reasoning_effort) }}")
    trained("What is it?").save(str(folder / "tokenizer.json"))
    settings = make_settings(model_repository=str(tmp_path))
    async with running_api(settings) as running, running_dispatcher(settings):
        yield running


def emit(said: str, *more: Any) -> list[Any]:
    command = f"[[sim:emit64={base64.b64encode(said.encode()).decode()}]]"
    return [*more, {"role": "user", "content": command}]


async def both(client: anthropic.AsyncAnthropic, **asked: Any) -> Any:
    """The message as a whole, of which the stream has the same, however it is cut."""
    asked = {"model": "chat", "max_tokens": 200} | asked
    whole = await client.messages.create(**asked)
    async with client.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    shown = [
        (
            [block.to_dict() | {"signature": None, "id": None, "parsed_output": None} for block in each.content],
            each.stop_reason,
            each.stop_sequence,
            each.usage.to_dict(),
        )
        for each in (whole, streamed)
    ]
    assert shown[0] == shown[1]
    return whole


def blocks(message: Any) -> list[Any]:
    fields = {"text": "text", "thinking": "thinking", "tool_use": "input"}
    return [getattr(block, fields[block.type]) for block in message.content]


async def stored(service: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await service.client.get("/results/")).json()
    return found


async def test_a_message_is_a_ticket(client: anthropic.AsyncAnthropic, service: Service) -> None:
    raw = await client.messages.with_raw_response.create(
        model="chat", max_tokens=50, system="Be brief.", messages=emit("Good morning.")
    )
    message = await raw.parse()
    assert [block.to_dict() for block in message.content] == [
        {"type": "text", "text": "Good morning.", "citations": None}
    ]
    assert (message.role, message.model, message.stop_reason) == ("assistant", "chat", "end_turn")
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert raw.headers["request-id"] == raw.headers["x-request-id"] == message._request_id
    ticket = await service.result(raw.headers["x-result-id"])
    assert message.id == "msg_" + ticket["id"].replace("-", "")
    assert (ticket["status"], ticket["output"], ticket["parameters"]["max_tokens"]) == (
        "completed",
        "Good morning.",
        50,
    )


async def test_the_events_of_a_stream(service: Service) -> None:
    body = {"model": "chat", "max_tokens": 99, "stream": True, "messages": emit(f"So: {CALL}"), "tools": [WEATHER]}
    answer = await service.client.post("/v1/messages", json=body)
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")] == [
        each["type"] for each in events
    ]
    named = [each["type"] for each in events]
    assert named[:3] == ["message_start", "ping", "content_block_start"]
    assert named[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert [each["index"] for each in events if each["type"] == "content_block_start"] == [0, 1]
    pieces = [
        each["delta"]["partial_json"] for each in events if each.get("delta", {}).get("type") == "input_json_delta"
    ]
    assert json.loads("".join(pieces)) == {"place": "Paris"}
    (last,) = [each for each in events if each["type"] == "message_delta"]
    assert last["delta"]["stop_reason"] == "tool_use"
    assert last["usage"]["input_tokens"] > 0


SAID: list[tuple[str, dict[str, Any], list[Any] | None, str]] = [
    ("Grüße, 世界! 🙂 one two", {}, ["Grüße, 世界! 🙂 one two"], "end_turn"),
    ("one two three", {"stop_sequences": [" thr", "zz"]}, ["one two"], "stop_sequence"),
    ("one two three", {"stop_sequences": ["th", " three"]}, ["one two "], "stop_sequence"),
    ("one two three", {"stop_sequences": ["three four"]}, ["one two three"], "end_turn"),
    ("one two three four five six", {"max_tokens": 2}, None, "max_tokens"),
    (f"So: {CALL}{CALL}", {"tools": [WEATHER]}, ["So:", {"place": "Paris"}, {"place": "Paris"}], "tool_use"),
    (CALL, {"tools": [WEATHER], "tool_choice": {"type": "none"}}, [CALL], "end_turn"),
    (
        f"{CALL}{CALL}",
        {"tools": [WEATHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        [{"place": "Paris"}],
        "tool_use",
    ),
]


async def test_what_is_said_and_why_it_ends(client: anthropic.AsyncAnthropic) -> None:
    for spoken, asked, expected, reason in SAID:
        message = await both(client, messages=emit(spoken), **asked)
        assert message.stop_reason == reason, spoken
        assert expected is None or blocks(message) == expected
        assert message.stop_sequence in ([None] if reason != "stop_sequence" else asked["stop_sequences"])


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
async def test_a_call_is_made_where_one_is_asked_for(client: anthropic.AsyncAnthropic, choice: Any) -> None:
    asked: dict[str, Any] = {"model": "chat", "max_tokens": 300, "messages": [{"role": "user", "content": "Weather?"}]}
    message = await client.messages.create(**asked, tools=[WEATHER], tool_choice=choice)
    async with client.messages.stream(**asked, tools=[WEATHER], tool_choice=choice) as stream:
        streamed = await stream.get_final_message()
    for each in (message, streamed):
        assert each.stop_reason == "tool_use"
        calls = [block for block in each.content if block.type == "tool_use"]
        assert [call.name for call in calls] == ["weather"] * len(each.content)
        assert all(isinstance(call.input, dict) and set(call.input) == {"place"} for call in calls)
    results = [{"type": "tool_result", "tool_use_id": each.id, "content": "Sunny"} for each in calls]
    asked["messages"] += [streamed.to_param(), {"role": "user", "content": results}]
    assert (await client.messages.create(**asked, tools=[WEATHER])).usage.input_tokens > message.usage.input_tokens


async def test_an_answer_is_held_to_a_form(client: anthropic.AsyncAnthropic) -> None:
    class Dog(BaseModel):
        age: int

    asked: dict[str, Any] = {"model": "chat", "max_tokens": 60, "messages": [{"role": "user", "content": "A dog?"}]}
    assert isinstance((await client.messages.parse(**asked, output_format=Dog)).parsed_output, Dog)


async def test_reasoning_is_thinking(thinking: Service) -> None:
    async with client_of(thinking) as client:
        message = await both(client, messages=emit(f"{TOLD}{CALL}"), tools=[WEATHER])
        assert blocks(message) == ["Two and two.", "Four.", {"place": "Paris"}]
        assert message.content[0].signature == message.id
        # What was returned is taken back, the thinking too.
        result = {"type": "tool_result", "tool_use_id": message.content[2].id, "content": "Sunny"}
        again = [*emit("x"), message.to_param(), {"role": "user", "content": [result]}]
        await client.messages.create(model="chat", max_tokens=9, messages=again)
        omitted = await both(
            client, messages=emit(TOLD), thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"}
        )
        assert blocks(omitted) == ["", "Four."]


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({}, "[thinks: , ]"),
        ({"thinking": {"type": "disabled"}}, "[thinks: False, none]"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "[thinks: True, ]"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "[thinks: , low]"),
    ],
)
async def test_how_a_template_is_told_to_think(thinking: Service, asked: dict[str, Any], shown: str) -> None:
    async with client_of(thinking) as client:
        await client.messages.create(model="chat", max_tokens=5, messages=emit("Yes."), **asked)
    assert (await prompt_of(thinking)).endswith(shown)


async def prompt_of(service: Service) -> str:
    (ticket,) = await stored(service)
    return str((await service.client.get(f"/contexts/{ticket['context_id']}")).json()["content"])


async def messages_of(database: Database) -> Any:
    async with database.hot() as connection:
        return await connection.fetchval("SELECT messages FROM contexts")


async def test_a_conversation_is_stored_as_a_chat(
    client: anthropic.AsyncAnthropic, service: Service, database: Database
) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"place": "Paris"}}
    cached: Any = {"cache_control": {"type": "ephemeral"}}
    await client.beta.messages.create(
        model="chat",
        max_tokens=5,
        betas=["made-up-2026-01-01"],
        system=[{"type": "text", "text": "Be brief.", **cached}, {"type": "text", "text": "Be kind."}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather?", **cached}]},
            {"role": "user", "content": "In Paris."},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "A tool.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    call,
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": "No net."},
                    {"type": "text", "text": "And?"},
                    {
                        "type": "document",
                        "title": "Notes",
                        "source": {"type": "text", "media_type": "text/plain", "data": "Rain."},
                    },
                ],
            },
        ],
        tools=[WEATHER],
        metadata={"user_id": "somebody"},
    )
    function = {"name": "weather", "arguments": '{"place": "Paris"}'}

    def texts(*words: str) -> list[Any]:
        return [{"type": "text", "text": each} for each in words]

    assert await messages_of(database) == [
        {"role": "system", "content": texts("Be brief.", "Be kind.")},
        {"role": "user", "content": texts("Weather?", "In Paris.")},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "A tool.",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": texts("Error:", "No net.")},
        {"role": "user", "content": texts("And?", "Notes\nRain.")},
    ]
    assert 'weather", "arguments": {"place": "Paris"}' in await prompt_of(service)


async def test_an_answer_goes_on_with_the_last_message(client: anthropic.AsyncAnthropic, service: Service) -> None:
    turns = [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "It is called"}]
    await client.messages.create(model="chat", max_tokens=5, messages=turns)
    assert (await prompt_of(service)).endswith("assistant\nIt is called")


async def test_parameters_reach_the_engine(client: anthropic.AsyncAnthropic, service: Service) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 7}
    await client.messages.create(
        model="chat", max_tokens=5, stop_sequences=["zz"], messages=emit("x"), extra_body=sampling
    )
    (ticket,) = await stored(service)
    sent = ticket["parameters"]
    assert sent | sampling | {"max_tokens": 5, "stop": ["zz"]} == sent


async def test_what_has_no_effect_is_named(client: anthropic.AsyncAnthropic) -> None:
    raw = await client.messages.with_raw_response.create(
        model="chat",
        max_tokens=5,
        messages=emit("x"),
        tools=[WEATHER, {"type": "web_search_20250305", "name": "web_search"}],
        extra_body={"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}, "service_tier": "auto"},
    )
    assert raw.headers["x-ignored"] == "tools[1]=web_search_20250305, context_management"


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
USER = "messages[0].content"


def said(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": ""}]}, USER),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    (said({"text": "x"}), f"{USER}[0].type"),
    (said({"type": "text"}), f"{USER}[0].text"),
    (said({"type": "text", "text": "x"}, IMAGE), "messages"),
    (said({"type": "image", "source": {"type": "file", "file_id": "x"}}), f"{USER}[0].source.type"),
    (said({"type": "image", "source": IMAGE["source"] | {"data": "?"}}), f"{USER}[0].source.data"),
    (said({"type": "image", "source": IMAGE["source"] | {"media_type": "a/b"}}), f"{USER}[0].source.media_type"),
    (said({"type": "tool_result", "content": "x"}), f"{USER}[0].tool_use_id"),
    (said({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "x"}]}), f"{USER}[0].content[0].type"),
    (said({"type": "server_tool_use", "id": "a", "name": "b", "input": {}}), f"{USER}[0].type"),
    (said({"type": "document", "source": {"type": "base64", "data": "x"}}), f"{USER}[0].source.type"),
    ({"system": [{"type": "text", "text": "x"}, {"type": "image"}]}, "system[1].type"),
    ({"temperature": 3}, "temperature"),
    ({"top_k": -2}, "top_k"),
    ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
    ({"tools": [WEATHER, WEATHER]}, "tools"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool", "name": "none"}, "tools": [WEATHER]}, "tool_choice"),
    ({"tool_choice": {"type": "tool"}, "tools": [WEATHER]}, "tool_choice.name"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"tool_choice": {"type": "any"}, "tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ({"thinking": {"type": "deep"}}, "thinking.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "mcp_servers"),
    ({"n": 2}, "n"),
    ({"system": "a\x00b"}, "The body"),
]


async def test_what_is_wrong_is_named_by_its_path(service: Service) -> None:
    for body, where in WRONG:
        asked = {"model": "chat", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]} | body
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            if body == {"max_tokens": None} and path != "/v1/messages":
                continue
            sent = {name: value for name, value in asked.items() if value is not None}
            answer = await service.client.post(path, json=sent)
            told = answer.json()
            assert (answer.status_code, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
            assert told["error"]["message"].startswith(f"{where}: "), told
            assert told["request_id"] == answer.headers["request-id"]
    assert await stored(service) == []


async def test_the_client_knows_the_errors(client: anthropic.AsyncAnthropic, service: Service) -> None:
    asked: dict[str, Any] = {"model": "chat", "max_tokens": 5, "messages": emit("x")}
    with pytest.raises(anthropic.NotFoundError) as missing:
        await client.messages.create(**asked | {"model": "none"})
    assert missing.value.type == "not_found_error"
    # Before the first token a stream has a status too, and the words by which clients shorten a conversation.
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long") as long:
            await client.messages.create(
                **asked | {"messages": [{"role": "user", "content": "word " * 9000}]}, stream=stream
            )
        assert long.value.request_id
    for path, body in (("/v1/messages/batches", {}), ("/v1/messages", b"{")):
        answer = await service.client.post(
            path, headers={"content-type": "application/json"}, content=body if isinstance(body, bytes) else b"{}"
        )
        assert answer.json()["type"] == "error"


async def test_keys(make_settings: Callable[..., Settings], database: Database) -> None:
    _, key = await Keys(database).create(NewKey("alice"), Actor(None, "tests"))
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_api(make_settings(auth_required=True)))
        for options in ({"api_key": key}, {"api_key": None, "auth_token": key}):
            async with client_of(running, **options) as client:
                assert (await client.models.list()).data is not None
        async with client_of(running, api_key="sk-wrong") as client:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await client.messages.create(model="chat", max_tokens=5, messages=emit("x"))
            assert refused.value.type == "authentication_error"


async def test_tokens_are_counted(thinking: Service, service: Service) -> None:
    async with client_of(thinking) as client:
        turns: list[Any] = [{"role": "user", "content": "What is it?"}]
        few = await client.messages.count_tokens(model="chat", messages=turns)
        more = await client.messages.count_tokens(model="chat", messages=turns, system="Be brief.", tools=[WEATHER])
    assert 0 < few.input_tokens < more.input_tokens
    async with client_of(service) as client:
        with pytest.raises(anthropic.BadRequestError, match=r"tokenizer\.json"):
            await client.messages.count_tokens(model="chat", messages=turns)
    assert await stored(service) == []


async def test_models_are_listed_in_pages(client: anthropic.AsyncAnthropic, service: Service) -> None:
    names = [model["id"] for model in (await service.client.get("/v1/models")).json()["data"]]
    assert len(names) == 3
    assert [model.id async for model in client.models.list(limit=1)] == names
    first = await client.models.list(limit=2)
    assert (first.has_more, first.first_id, first.last_id) == (True, names[0], names[1])
    before = await client.models.list(before_id=names[2], limit=1)
    assert ([model.id for model in before.data], before.has_more) == ([names[1]], True)
    model = await client.models.retrieve("chat")
    assert (model.id, model.type, model.lifecycle) == ("chat", "model", "active")
    assert model.created_at.year >= 2026
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("none")
    with pytest.raises(anthropic.BadRequestError, match="after_id"):
        await client.models.list(after_id="none")


async def test_images_go_to_servers_that_take_messages(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    async def speak(_: Asked) -> AsyncIterator[bytes]:
        yield head() + text("A lamp.") + finish(prompt_tokens=9, completion_tokens=3)

    async with faulty_server(speak) as server:
        file = tmp_path / "servers.json"
        file.write_text(json.dumps({"servers": [{"kind": "openai", "url": server.url, "models": {"m": "sees"}}]}))
        settings = make_settings(triton_urls=(), triton_servers_file=file)
        async with running_api(settings) as running, running_dispatcher(settings), client_of(running) as client:

            async def ready() -> bool:
                return any(model.id == "sees" for model in (await client.models.list()).data)

            await eventually(ready, "the model is there")
            result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "Here"}, IMAGE]}
            call = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
            turns: Any = [
                {"role": "user", "content": [IMAGE, {"type": "text", "text": "What is it?"}]},
                {"role": "assistant", "content": [call]},
                {"role": "user", "content": [result]},
                {"role": "assistant", "content": "I see"},
            ]
            message = await both(client, model="sees", messages=turns)
        assert blocks(message) == ["A lamp."]
        assert (message.usage.input_tokens, message.usage.output_tokens) == (9, 3)
        sent = server.asked[0].json
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        assert sent["messages"][0]["content"] == [picture, {"type": "text", "text": "What is it?"}]
        assert [each["role"] for each in sent["messages"]] == ["user", "assistant", "tool", "user", "assistant"]
        assert (sent["messages"][2]["content"], sent["messages"][3]["content"]) == ("Here", [picture])
        assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)


async def test_a_stream_that_fails_on_the_way_says_so(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    async def break_off(_: Asked) -> AsyncIterator[bytes]:
        yield head() + text("A lamp") + event({"error": {"message": "broken", "code": 400}})

    async with faulty_server(break_off) as server:
        file = tmp_path / "servers.json"
        file.write_text(json.dumps({"servers": [{"kind": "openai", "url": server.url, "models": {"m": "far"}}]}))
        settings = make_settings(triton_urls=(), triton_servers_file=file)
        async with running_api(settings) as running, running_dispatcher(settings), client_of(running) as client:

            async def ready() -> bool:
                return any(model.id == "far" for model in (await client.models.list()).data)

            await eventually(ready, "the model is there")
            with pytest.raises(anthropic.APIStatusError) as failed:
                await both(client, model="far", messages=emit("x"))
            assert failed.value.status_code == 400
            events: list[str] = []

            async def follow() -> None:
                stream = await client.messages.create(model="far", max_tokens=9, messages=emit("x"), stream=True)
                async for each in stream:
                    events.append(each.type)

            with pytest.raises(anthropic.APIStatusError) as told:
                await follow()
            assert told.value.type == "invalid_request_error"
            assert events[0] == "message_start"


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("abc", max_size=5), max_size=6),
    st.sampled_from(["stop", "length"]),
)
def test_a_stop_sequence_is_found_however_the_text_is_cut(
    sequences: Sequence[str], pieces: Sequence[str], reason: str
) -> None:
    stops = StopSequences({"stop": list(sequences)})
    kept = "".join([*map(stops.feed, pieces), stops.finish(reason)])
    whole = "".join(pieces)
    ends = [each for each in sequences if whole.endswith(each)] if reason == "stop" else []
    assert stops.hit == max(ends, key=len, default=None)
    assert kept + (stops.hit or "") == whole
