"""What OpenAI's API says, as the service keeps it: no server needed."""

from __future__ import annotations

from typing import Any

import pytest

from app.engines.base import Request
from app.engines.openai_wire import Answer, chat_body, completion_body, vectors_of
from app.prompts.arguments import ToolCall
from app.prompts.families import LISTED, TOOL_CALLS
from app.prompts.toolcalls import parse
from app.tasks.chunks import Accumulator

FUNCTIONS: dict[str, Any] = {"add": {}, "stop": {}}


def read(*deltas: dict[str, Any], reason: str = "stop", choice: Any = None) -> Accumulator:
    answer, made = Answer(None, choice), Accumulator()
    for delta in deltas:
        made.add(answer.chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
    made.add(answer.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
    made.add(answer.last())
    return made


def call(index: int, name: str | None, arguments: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    return {"tool_calls": [{"index": index, "id": "x", "type": "function", "function": function}]}


CALLS = (call(0, "add", '{"a": '), call(1, "stop", ""), call(0, None, "1}"))


def test_tool_calls_become_what_the_service_reads_as_calls() -> None:
    made = read({"content": "Let me see."}, *CALLS, reason="tool_calls")
    parsed = parse(made.joined()[0], FUNCTIONS)
    assert parsed.content == "Let me see."
    # Whatever family the model's folder names.
    assert all(parse(made.joined()[0], FUNCTIONS, family) == parsed for family in TOOL_CALLS.values())
    assert parsed.calls == [ToolCall("add", '{"a": 1}'), ToolCall("stop", "{}")]
    assert made.finish_reasons == ["stop"]


def test_forced_calls_become_what_the_service_forces() -> None:
    assert parse(read(*CALLS, reason="tool_calls", choice="required").joined()[0], FUNCTIONS, (LISTED,)).calls == [
        ToolCall("add", '{"a": 1}'),
        ToolCall("stop", "{}"),
    ]
    named = {"type": "function", "function": {"name": "add"}}
    assert read(CALLS[0], CALLS[2], choice=named).joined() == ['{"a": 1}']


def test_arguments_may_come_as_an_object() -> None:
    assert parse(read(call(0, "add", {"a": 1})).joined()[0], FUNCTIONS).calls == [ToolCall("add", '{"a": 1}')]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_stands_between_marks(name: str) -> None:
    made = read({name: "Hm"}, {name: "m."}, {"content": "Yes"}, {"content": "."})
    assert made.joined() == ["<think>\nHmm.\n</think>\n\nYes."]
    assert read({name: "Hm"}, reason="length").joined() == ["<think>\nHm\n</think>\n\n"]


def test_the_old_form_of_logprobs_is_read() -> None:
    answer = Answer()
    old = {"tokens": ["a", "\x00"], "token_logprobs": [-0.5, None], "top_logprobs": [{"a": -0.5, "b": -1.0}, None]}
    chunk = answer.chunk({"choices": [{"text": "a\x00", "logprobs": old, "finish_reason": "length"}]})
    assert chunk.logprobs == [
        [
            {
                "a": {"logprob": -0.5, "decoded_token": "a", "chosen": True, "rank": 1},
                "b": {"logprob": -1.0, "decoded_token": "b", "rank": 2},
            },
            {"\ufffd": {"logprob": None, "decoded_token": "\ufffd", "chosen": True}},
        ]
    ]
    assert chunk.cumulative_logprobs == [-0.5]


def request(asked: dict[str, Any] | None = None, **parameters: Any) -> Request:
    return Request("m", "p", parameters, "id", 1.0, 1.0, asked=asked)


def test_a_form_is_said_in_the_words_of_the_server() -> None:
    schema = {"type": "object"}
    by_schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    for owner in ("vllm", "llamacpp", ""):
        asked = request(structured_outputs={"json": schema})
        assert chat_body(asked, [], owner)["response_format"] == by_schema
        asked = request(structured_outputs={"json_object": True})
        assert chat_body(asked, [], owner)["response_format"] == {"type": "json_object"}
    assert completion_body(request(structured_outputs={"regex": "a"}), "vllm")["structured_outputs"] == {"regex": "a"}
    assert completion_body(request(structured_outputs={"choice": ["a", 'b"']}), "llamacpp")["grammar"] == (
        'root ::= "a" | "b\\""'
    )
    # What the client asked for goes on as it came; what the service made of it does not.
    form = {"type": "json_schema", "json_schema": {"name": "mine", "schema": schema}}
    body = chat_body(request({"response_format": form}, structured_outputs={"json": schema}), [], "")
    assert body["response_format"] == form
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = chat_body(request({"tools": tools, "tool_choice": "required"}, structured_outputs={"json": {}}), [], "")
    assert (body["tools"], body["tool_choice"]) == (tools, "required")
    assert "response_format" not in body


def test_an_adapter_is_a_model_there() -> None:
    assert completion_body(request(lora_name="law"), "")["model"] == "law"


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        [{"embedding": [1.0]}],
        [{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}],
        [{"embedding": [1.0]}, {"embedding": [None]}],
        [{"embedding": [1.0]}, {"embedding": [1e999]}],
        [{"embedding": [1.0]}, {"embedding": "%%%"}],
        [{"embedding": [1.0]}, {"embedding": [[1.0]]}],
        [{"embedding": [1.0]}, {"embedding": ["x"]}],
        [{"embedding": [1.0]}, 7],
    ],
)
def test_what_is_no_vector_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        vectors_of({"data": data}, 2)


def test_vectors_are_put_in_order() -> None:
    rows = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": "AACAPw=="}]
    vectors, tokens = vectors_of({"data": rows, "usage": {"prompt_tokens": 5}}, 2)
    assert (vectors, tokens) == (["AACAPw==", "AAAAQA=="], 5)
