"""Tool calls: read from text, and through the official client."""

import base64
import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.prompts.arguments import ToolCall
from app.prompts.families import ANY, REASONING, TOOL_CALLS
from app.prompts.reasoning import ReasoningStream, split
from app.prompts.toolcalls import ToolCallStream, collected, parse

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
NAMES = {each["function"]["name"]: each["function"] for each in (WEATHER, TIME)}
MARKERS = [each.marker for each in ANY if each.marker]


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


FORMATS = {"any": ANY} | TOOL_CALLS


@given(st.lists(pieces, max_size=8).map("".join), st.sampled_from(sorted(FORMATS)), st.data())
def test_a_stream_finds_what_the_whole_text_holds(text: str, family: str, data: st.DataObject) -> None:
    """However the text is cut, nothing is sent that is not content, and nothing is lost."""
    stream, rest, told = ToolCallStream(NAMES, FORMATS[family]), text, []
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        told += stream.feed(rest[:length])
        rest = rest[length:]
    assert collected([*told, *stream.finish()]) == parse(text, NAMES, FORMATS[family])


CALL = ToolCall("weather", '{"place": "Paris"}')
ARGUMENTS = '{"place": "Paris"}'


@pytest.mark.parametrize(
    ("family", "text", "calls"),
    [
        (
            "deepseek_v3",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
            f"{ARGUMENTS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{{}}\n```"
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            [CALL, ToolCall("time", "{}")],
        ),
        (
            "deepseek_v31",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
            f"{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            [CALL],
        ),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
            f"{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>",
            [CALL],
        ),
        (
            "glm45",
            "<tool_call>weather\n<arg_key>place</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
            "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>time\n</tool_call>",
            [ToolCall("weather", '{"place": "Paris", "days": 2}'), ToolCall("time", "{}")],
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=weather>\n<parameter=place>\n12\n</parameter>\n</function>\n</tool_call>",
            [ToolCall("weather", '{"place": "12"}')],
        ),
        (
            "openai",
            f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>",
            [CALL],
        ),
    ],
)
def test_each_family_is_read(family: str, text: str, calls: list[ToolCall]) -> None:
    assert parse(text, NAMES, TOOL_CALLS[family]).calls == calls
    assert parse(f"Let me look.\n{text}", NAMES, TOOL_CALLS[family]).content == "Let me look."
    assert parse(f"Let me look.\n{text}", NAMES, TOOL_CALLS[family]).calls == calls


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('<tool_call>{"name": "weather", "arguments": {"place": "Pa', '{"place": "Pa'),
        ('<tool_call>{"name": "weather", "arguments": {place: Paris}}</tool_call>', "{place: Paris}"),
        ('[TOOL_CALLS]weather[ARGS]{"place"', '{"place"'),
        ('{"name": "weather", "parameters": {', "{"),
        ('<tool_call>{"name": "weather", "arguments": "{\\"place\\": 3}"}</tool_call>', '{"place": 3}'),
        ('<tool_call>{"arguments": {"place": 1}, "name": "weather"}</tool_call>', '{"place": 1}'),
    ],
)
def test_a_call_whose_function_is_named_is_one(text: str, arguments: str) -> None:
    parsed = parse(text, NAMES)
    assert (parsed.content, parsed.calls) == ("", [ToolCall("weather", arguments)])


def test_arguments_come_in_pieces() -> None:
    stream = ToolCallStream(NAMES)
    told = [piece for each in f"<tool_call>{PARIS}</tool_call>" for piece in stream.feed(each)]
    assert (told[0].name, len(told)) == ("weather", len(ARGUMENTS) + 1)


marks = st.sampled_from(
    [
        "<think>", "</think>", "a", " ", "\n", "<", "<th", "</", "think>", "<|end|>", "<|start|>assistant", "<|",
        REASONING["openai_gptoss"].start, "<|channel|>final<|message|>",
    ]
)  # fmt: skip


@given(st.lists(marks, max_size=9).map("".join), st.sampled_from(["qwen3", "openai_gptoss"]), st.booleans(), st.data())
def test_reasoning_in_a_stream_is_that_of_the_whole_text(
    text: str, name: str, opened: bool, data: st.DataObject
) -> None:
    stream, rest, told = ReasoningStream(REASONING[name], opened), text, []
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        told.append(stream.feed(rest[:length]))
        rest = rest[length:]
    told.append(stream.finish())
    assert ("".join(a for a, _ in told), "".join(b for _, b in told)) == split(text, REASONING[name], opened)


@pytest.mark.parametrize(
    ("name", "opened", "text", "parts"),
    [
        ("qwen3", False, "<think>\nHm.\n</think>\n\nYes.", ("Hm.", "Yes.")),
        ("qwen3", False, "<think>\n\n</think>\n\nYes.", ("", "Yes.")),
        ("deepseek_r1", True, "Hm.\n</think>\nYes.", ("Hm.", "Yes.")),
        ("deepseek_r1", True, "Hm, and then it was cut", ("Hm, and then it was cut", "")),
        ("qwen3", False, "Write <think> so.", ("", "Write <think> so.")),
        ("mistral", False, "[THINK]Hm.[/THINK]Yes.", ("Hm.", "Yes.")),
        (
            "openai_gptoss",
            False,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
            ("Hm.", "Yes."),
        ),
    ],
)
def test_reasoning_is_told_from_the_answer(name: str, opened: bool, text: str, parts: tuple[str, str]) -> None:
    assert split(text, REASONING[name], opened) == parts


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


async def streamed(client: openai.AsyncOpenAI, **asked: Any) -> tuple[str, list[tuple[str, str]], str | None]:
    """What a stream says, the names and arguments of what it calls, and how it ends."""
    deltas, content, reason = [], "", None
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        deltas += choice.delta.tool_calls or []
        reason = choice.finish_reason or reason
    return content, calls_of([delta.to_dict() for delta in deltas]), reason


def calls_of(deltas: list[dict[str, Any]]) -> list[tuple[str, str]]:
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        function = delta["function"]
        if "name" in function:
            assert delta["id"]
            calls[delta["index"]] = [function["name"], function["arguments"]]
        else:
            calls[delta["index"]][1] += function["arguments"]
    return [(name, arguments) for name, arguments in calls.values()]


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
    content, told, reason = await streamed(client, **asked)
    assert (content, reason) == ("One moment.", "tool_calls")
    assert told == [("weather", ARGUMENTS)] * 2
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
    assert call.function.arguments == '{"place": "\\ud83d"}'
    _, calls, reason = await streamed(client, **asked)
    assert (reason, calls) == ("tool_calls", [("weather", call.function.arguments)])
    again = [*asked["messages"], {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}]
    asked["messages"] = [*again, {"role": "tool", "tool_call_id": call.id, "content": "Where?"}]
    assert (await client.chat.completions.create(**asked, max_tokens=3)).choices


async def test_a_call_that_is_required(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "chat", "messages": [{"role": "user", "content": "Paris?"}], "tools": [WEATHER], "temperature": 0,
    }  # fmt: skip
    required = (await client.chat.completions.create(**asked, tool_choice="required")).choices[0]
    assert required.finish_reason == "tool_calls"
    (call,) = required.message.tool_calls or []
    assert call.type == "function"
    assert 1 <= json.loads(call.function.arguments)["days"] <= 3
    content, told, reason = await streamed(client, **asked, tool_choice="required")
    assert (content, reason, told) == ("", "tool_calls", [("weather", call.function.arguments)])
    named = (
        await client.chat.completions.create(**asked, tool_choice={"type": "function", "function": {"name": "weather"}})
    ).choices[0]
    (call,) = named.message.tool_calls or []
    assert (named.finish_reason, named.message.content) == ("stop", None)
    assert call.type == "function"
    assert json.loads(call.function.arguments)["place"]


ANSWER: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]},
    },
}


@pytest.mark.parametrize("form", [ANSWER, {"type": "json_object"}], ids=["schema", "object"])
async def test_a_call_or_an_answer_of_a_form(client: openai.AsyncOpenAI, service: Any, form: Any) -> None:
    for text, content, calls in (
        ('{"answer": 3}', '{"answer": 3}', []),
        (f"[{PARIS}]", None, [("weather", ARGUMENTS)]),
        (f"[{PARIS}, {PARIS}]", None, [("weather", ARGUMENTS)] * 2),
    ):
        asked: dict[str, Any] = {
            "model": "chat", "messages": emit(text), "tools": [WEATHER, TIME], "response_format": form
        }  # fmt: skip
        answer = (await client.chat.completions.create(**asked)).choices[0]
        assert answer.message.content == content
        found = [(call.function.name, call.function.arguments) for call in answer.message.tool_calls or []]
        assert found == calls
        told = await streamed(client, **asked)
        assert (told[0], told[1]) == (content or "", calls)
        assert told[2] == answer.finish_reason == ("tool_calls" if calls else "stop")
    free = {"model": "chat", "messages": [{"role": "user", "content": "?"}], "tools": [WEATHER], "temperature": 0}
    made = await client.chat.completions.create(**free, response_format=form)  # type: ignore[call-overload]
    result = (await service.client.get(f"/results/{made.id.removeprefix('chatcmpl-')}")).json()
    assert len(result["parameters"]["structured_outputs"]["json"]["anyOf"]) == 2


async def test_what_should_be_a_call_is_never_told_as_text(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "chat", "messages": emit("[{"), "tools": [WEATHER], "tool_choice": "required"}
    with pytest.raises(openai.InternalServerError) as refused:
        await client.chat.completions.create(**asked)
    assert refused.value.code == "tool_calls_unreadable"
    with pytest.raises(openai.APIError) as streaming:
        await streamed(client, **asked)
    assert streaming.value.code == "tool_calls_unreadable"
    with pytest.raises(openai.BadRequestError, match="allow more tokens"):
        await client.chat.completions.create(**asked | {"messages": [{"role": "user", "content": "?"}]}, max_tokens=1)
    response = await client.responses.create(
        model="chat", input=emit("[{"), tools=[{"type": "function", **WEATHER["function"]}], tool_choice="required"
    )
    assert (response.status, response.output) == ("failed", [])


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
    assert calls_of(read(blocks)[1]) == [("weather", ARGUMENTS)]
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
        ({"functions": [{"name": "x"}]}, "functions"),
    ],
)
async def test_what_cannot_be_called_is_refused(client: openai.AsyncOpenAI, changes: Any, param: str) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "tools": [WEATHER]} | changes
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/chat/completions", cast_to=object, body=body)
    assert refused.value.param == param
