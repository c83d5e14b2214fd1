"""The reasoning before an answer, by the parser that the model's folder names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.openai.response_kit import events_of, uuid_of, valid
from tests.openai.test_tools import ARGUMENTS, PARIS, WEATHER, emit
from tests.service import Service

TOLD = "<think>\nTwo and two.\n</think>\n\nFour."


@pytest.fixture
def folder(served_models: Path) -> Iterator[Path]:
    folder = served_models / "chat" / "1"
    template = (folder / "chat_template.jinja").read_text()
    (folder / "parsers.json").write_text('{"reasoning": "qwen3", "tool_calls": "hermes"}')
    yield folder
    (folder / "parsers.json").unlink()
    (folder / "chat_template.jinja").write_text(template)


async def streamed(client: openai.AsyncOpenAI, **asked: Any) -> tuple[str, str]:
    reasoning, content = "", ""
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        delta = chunk.choices[0].delta.to_dict()
        reasoning += str(delta.get("reasoning_content") or "")
        content += str(delta.get("content") or "")
    return reasoning, content


async def test_reasoning_is_told_apart_in_chats(client: openai.AsyncOpenAI, folder: Path, service: Service) -> None:
    asked: dict[str, Any] = {"model": "chat", "messages": emit(TOLD)}
    message = (await client.chat.completions.create(**asked)).choices[0].message
    assert (message.content, message.to_dict()["reasoning_content"]) == ("Four.", "Two and two.")
    assert await streamed(client, **asked) == ("Two and two.", "Four.")
    answer = await client.chat.completions.create(
        model="chat", messages=emit(f"{TOLD}<tool_call>{PARIS}</tool_call>"), tools=[WEATHER]
    )
    message = answer.choices[0].message
    assert (message.content, message.to_dict()["reasoning_content"]) == ("Four.", "Two and two.")
    assert [call.function.arguments for call in message.tool_calls or [] if call.type == "function"] == [ARGUMENTS]
    # What a file says later changes no answer that there is.
    (folder / "parsers.json").write_text("{}")
    assert (await client.chat.completions.retrieve(answer.id)).choices[0].message.to_dict() == message.to_dict()
    plain = (await client.chat.completions.create(**asked)).choices[0].message
    assert plain.content == TOLD


async def test_reasoning_that_the_prompt_begins(client: openai.AsyncOpenAI, folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ '<think>\\n' if add_generation_prompt }}")
    asked: dict[str, Any] = {"model": "chat", "messages": emit("Two and two.\n</think>\n\nFour.")}
    message = (await client.chat.completions.create(**asked)).choices[0].message
    assert (message.content, message.to_dict()["reasoning_content"]) == ("Four.", "Two and two.")
    assert await streamed(client, **asked) == ("Two and two.", "Four.")
    asked["response_format"] = {"type": "json_object"}
    held = (await client.chat.completions.create(**asked | {"messages": emit('{"a": 4}')})).choices[0].message
    assert (held.content, held.to_dict().get("reasoning_content")) == ('{"a": 4}', None)


async def test_reasoning_is_an_item_of_a_response(client: openai.AsyncOpenAI, folder: Path, service: Service) -> None:
    tool: Any = {"type": "function", **WEATHER["function"]}
    text = emit(f"{TOLD}<tool_call>{PARIS}</tool_call>")[0]["content"]
    answer = valid(await client.responses.create(model="chat", input=text, tools=[tool]))
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    assert (answer.output[0].content[0].text, answer.output_text) == ("Two and two.", "Four.")  # type: ignore[union-attr, index]
    body = {"model": "chat", "input": text, "tools": [tool], "stream": True}
    events = events_of((await service.client.post("/v1/responses", json=body)).text)
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert items == events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call"]
    for kind, said in (
        ("reasoning_text", "Two and two."),
        ("output_text", "Four."),
        ("function_call_arguments", ARGUMENTS),
    ):
        assert "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta") == said
    named: Any = [{"type": "item_reference", "id": item["id"]} for item in items]
    output: Any = {"type": "function_call_output", "call_id": items[2]["call_id"], "output": "rain"}
    after = await client.responses.create(model="chat", input=[*named, output], tools=[tool], max_output_tokens=3)
    result = await service.result(uuid_of(after.id))
    prompt = (await service.client.get(f"/contexts/{result['context_id']}")).json()["content"]
    assert "Four.\n<tool_call>" in prompt
    assert "Two and two" not in prompt


@pytest.mark.parametrize("text", ["{", "[]", '{"reasoning": "wishful"}', '{"thinking": "qwen3"}'])
async def test_a_file_that_names_no_parser_is_the_operators(
    client: openai.AsyncOpenAI, folder: Path, text: str
) -> None:
    (folder / "parsers.json").write_text(text)
    with pytest.raises(openai.InternalServerError, match=r"parsers\.json") as broken:
        await client.chat.completions.create(model="chat", messages=emit("x"))
    assert broken.value.code == "chat_template_broken"
    assert json.loads(broken.value.response.text)["error"]["type"] == "server_error"
