"""Tool calls: read from text, and through the official client."""

import base64
import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.prompts.toolcalls import MARKERS, ToolCall, ToolCallStream, parse

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"$ref": "#/$defs/days"}},
            "required": ["place", "days"],
            "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 3}},
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
PARIS = '{"name": "weather", "arguments": {"place": "Paris"}}'
NAMES = ("weather", "time")


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{PARIS}\n</tool_call>",
        f"<tool_call>{PARIS}",
        f"[TOOL_CALLS] [{PARIS}]",
        '[TOOL_CALLS]weather[ARGS]{"place": "Paris"}',
        '[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"place": "Paris"}',
        '<|python_tag|>{"name": "weather", "parameters": {"place": "Paris"}}',
        '{"name": "weather", "parameters": {"place": "Paris"}}',
        ' {"type": "function", "name": "weather", "parameters": {"place": "Paris"}}\n',
    ],
)
def test_each_format_is_read(text: str) -> None:
    assert parse(text, NAMES).calls == [ToolCall("weather", '{"place": "Paris"}')]
    assert parse(text, NAMES).content == ""


@pytest.mark.parametrize(
    "text",
    [
        f'<tool_call>\n{PARIS}\n</tool_call>\n<tool_call>\n{{"name": "time"}}\n</tool_call>',
        f'[TOOL_CALLS][{PARIS}, {{"name": "time", "arguments": {{}}}}]',
        '[TOOL_CALLS]weather[ARGS]{"place": "Paris"}[TOOL_CALLS]time[ARGS]{}',
        '{"name": "weather", "parameters": {"place": "Paris"}}; {"name": "time", "parameters": {}}',
    ],
)
def test_several_calls_are_read(text: str) -> None:
    assert [call.name for call in parse(text, NAMES).calls] == ["weather", "time"]


@pytest.mark.parametrize(
    "text",
    [
        "Nothing to call.",
        '{"name": "unknown", "parameters": {}}',
        '{"temperature": 3}',
        "<tool_call>{broken</tool_call>",
        '<tool_call>["weather"]</tool_call>',
        "[TOOL_CALLS] soon",
        "<|python_tag|>print(1)",
        PARIS + " and more",
    ],
)
def test_what_only_looks_like_a_call_stays_text(text: str) -> None:
    assert parse(text, NAMES) == parse(text, NAMES).__class__(text, [])


def test_text_around_calls_is_kept() -> None:
    parsed = parse(f"Let me look. <tool_call>{PARIS}</tool_call> Done.", NAMES)
    assert (parsed.content, len(parsed.calls)) == ("Let me look.\nDone.", 1)


pieces = st.one_of(
    st.sampled_from(
        [*MARKERS, "</tool_call>", PARIS, "{", "}", "<", "<tool", "[", "[TOOL", " ", "\n", ";", "[ARGS]{}"]
    ),
    st.text(max_size=8),
)


@given(st.lists(pieces, max_size=8).map("".join), st.data())
def test_a_stream_finds_what_the_whole_text_holds(text: str, data: st.DataObject) -> None:
    """However the text is cut, nothing is sent that is not content, and nothing is lost."""
    stream, sent, rest = ToolCallStream(NAMES), "", text
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        sent += stream.feed(rest[:length])
        rest = rest[length:]
    end = stream.finish()
    whole = parse(text, NAMES)
    assert (sent + end.content, end.calls) == (whole.content, whole.calls)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.text(alphabet="abc .,\n", max_size=20))
def test_arguments_come_through_whole(arguments: dict[str, Any], before: str) -> None:
    marked = json.dumps({"name": "weather", "arguments": arguments})
    if "<" in marked or "[TOOL" in marked:
        return
    for text in (f"{before}<tool_call>{marked}</tool_call>", f"{before}[TOOL_CALLS][{marked}]"):
        parsed = parse(text, NAMES)
        assert parsed.content == before.rstrip()
        assert [json.loads(call.arguments) for call in parsed.calls] == [arguments]


def emit(text: str) -> list[Any]:
    return [{"role": "user", "content": f"[[sim:emit64={base64.b64encode(text.encode()).decode()}]]"}]


async def streamed(client: openai.AsyncOpenAI, **asked: Any) -> tuple[str, list[Any], str | None]:
    content, calls, reason = "", [], None
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        reason = choice.finish_reason or reason
    return content, calls, reason


async def test_a_call_of_the_models_own_will(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "chat",
        "messages": emit(f"One moment.\n<tool_call>{PARIS}</tool_call><tool_call>{PARIS}</tool_call>"),
        "tools": [WEATHER, TIME],
    }
    answer = (await client.chat.completions.create(**asked)).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content == "One moment."
    calls = answer.message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls if call.type == "function"] == [
        {"place": "Paris"}
    ] * 2
    assert len({call.id for call in calls}) == 2
    content, chunks, reason = await streamed(client, **asked)
    assert (content, reason) == ("One moment.", "tool_calls")
    assert [(chunk.index, chunk.function.name) for chunk in chunks] == [(0, "weather"), (1, "weather")]
    single = (await client.chat.completions.create(**asked, parallel_tool_calls=False)).choices[0]
    assert len(single.message.tool_calls or []) == 1
    none = (await client.chat.completions.create(**asked, tool_choice="none")).choices[0]
    assert none.message.tool_calls is None
    assert "<tool_call>" in (none.message.content or "")


async def test_half_a_character_in_a_call_is_no_defect(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "chat",
        "messages": emit('<tool_call>{"name": "weather", "arguments": {"place": "\\ud83d"}}</tool_call>'),
        "tools": [WEATHER],
    }
    (call,) = (await client.chat.completions.create(**asked)).choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"place": "?"}
    _, chunks, reason = await streamed(client, **asked)
    assert (reason, chunks[0].function.arguments) == ("tool_calls", call.function.arguments)


async def test_a_call_that_is_required(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "chat", "messages": [{"role": "user", "content": "Paris?"}], "tools": [WEATHER], "temperature": 0,
    }  # fmt: skip
    required = (await client.chat.completions.create(**asked, tool_choice="required")).choices[0]
    assert required.finish_reason == "tool_calls"
    (call,) = required.message.tool_calls or []
    assert call.type == "function"
    assert 1 <= json.loads(call.function.arguments)["days"] <= 3
    content, chunks, reason = await streamed(client, **asked, tool_choice="required")
    assert (content, reason, chunks[0].function.arguments) == ("", "tool_calls", call.function.arguments)
    assert chunks[0].id != call.id
    named = (
        await client.chat.completions.create(**asked, tool_choice={"type": "function", "function": {"name": "weather"}})
    ).choices[0]
    (call,) = named.message.tool_calls or []
    assert (named.finish_reason, named.message.content) == ("stop", None)
    assert call.type == "function"
    assert json.loads(call.function.arguments)["place"]


async def test_a_cut_stream_with_tools_goes_on_without_loss(client: openai.AsyncOpenAI, service: Any) -> None:
    text = "First some words that are content, quite a few of them. " * 4
    body = {"model": "chat", "messages": emit(f"{text}<tool_call>{PARIS}</tool_call>"), "tools": [WEATHER]}
    body["messages"][0]["content"] += "[[sim:slow=15]]"
    whole = (await service.client.post("/v1/chat/completions", json=body | {"stream": True})).text
    blocks = [block for block in whole.split("\n\n") if block]
    id_ = json.loads(blocks[0].removeprefix("data: "))["id"]
    cuts = [place for place, block in enumerate(blocks) if block.startswith("id: ")]

    def read(parts: list[str]) -> tuple[str, list[Any]]:
        content, calls = "", []
        for part in parts:
            data = part.partition("data: ")[2]
            if data and data != "[DONE]":
                delta = json.loads(data)["choices"][0]["delta"]
                content += delta.get("content") or ""
                calls += delta.get("tool_calls") or []
        return content, calls

    assert read(blocks)[0] == text.rstrip()
    assert len(cuts) > 3
    for cut in cuts[:-1]:
        after = blocks[cut].split()[1]
        rest = await service.client.get(
            f"/v1/chat/completions/{id_}", params={"stream": "true", "starting_after": after}
        )
        kept, gone_on = read(blocks[: cut + 1]), read(rest.text.split("\n\n"))
        assert (kept[0] + gone_on[0], kept[1] + gone_on[1]) == read(blocks)


async def test_a_whole_conversation_with_a_tool_reaches_the_template(client: openai.AsyncOpenAI, service: Any) -> None:
    answer = await client.chat.completions.create(
        model="chat",
        tools=[WEATHER],  # type: ignore[list-item]
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Paris?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"place":"Paris"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "rain <3"},
        ],
    )
    digits = answer.id.removeprefix("chatcmpl-")
    result = (await service.client.get(f"/results/{digits}")).json()
    prompt = (await service.client.get(f"/contexts/{result['context_id']}")).json()["content"]
    assert prompt.startswith("<|im_start|>system\nBe brief.")
    assert '"description": "The weather of a place"' in prompt
    assert '<tool_call>\n{"name": "weather", "arguments": {"place": "Paris"}}\n</tool_call><|im_end|>' in prompt
    assert "<tool_response>\nrain <3\n</tool_response><|im_end|>\n<|im_start|>assistant\n" in prompt


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tool_choice": "required", "tools": None}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"functions": [{"name": "x"}]}, "functions"),
    ],
)
async def test_what_cannot_be_called_is_refused(client: openai.AsyncOpenAI, changes: Any, param: str) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "tools": [WEATHER]} | changes
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/chat/completions", cast_to=object, body=body)
    assert refused.value.param == param
