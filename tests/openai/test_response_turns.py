"""How /v1/responses goes on from one response to the next: chains, calls of functions and items."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseItemList

from app.config import Settings
from app.db.engine import open_database
from app.queue.audit import KEYLESS
from app.services.keys import Keys, NewKey
from tests.openai.conftest import client_of
from tests.openai.response_kit import CALL, WEATHER, emit, events_of, prompt_of, valid
from tests.service import Service, running_api, running_dispatcher


async def test_a_chain_remembers_all_but_the_instructions(client: openai.AsyncOpenAI, service: Service) -> None:
    first = await client.responses.create(model="chat", input=emit("I am Ann."), instructions="Speak as a pirate.")
    second = await client.responses.create(
        model="chat", input=[{"role": "user", "content": emit("Hello.")}], previous_response_id=first.id
    )
    third = await client.responses.create(
        model="chat", input="And now?", instructions="Be kind.", previous_response_id=second.id, max_output_tokens=3
    )
    assert third.previous_response_id == second.id
    prompt = await prompt_of(service, third.id)
    assert "pirate" in await prompt_of(service, first.id)
    assert "pirate" not in prompt
    turns = [turn.partition("\n") for turn in prompt.split("<|im_start|>")[1:]]
    assert [turn[0] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert [turns[place][2] for place in (0, 2, 4, 5)] == [
        "Be kind.<|im_end|>\n", "I am Ann.<|im_end|>\n", "Hello.<|im_end|>\n", "And now?<|im_end|>\n"
    ]  # fmt: skip
    items = [item.to_dict() async for item in client.responses.input_items.list(third.id, limit=2, order="asc")]
    assert [item["role"] for item in items] == ["user", "assistant", "user", "assistant", "user"]
    page = (await service.client.get(f"/v1/responses/{third.id}/input_items")).json()
    ResponseItemList.model_validate(page)
    assert [item["id"] for item in page["data"]] == [item["id"] for item in reversed(items)]


async def test_a_function_is_called_and_its_answer_goes_back(client: openai.AsyncOpenAI, service: Service) -> None:
    asked: Any = {"model": "chat", "input": emit(f"One moment.\n{CALL}{CALL}"), "tools": [WEATHER]}
    answer = valid(await client.responses.create(**asked))
    message, first, second = answer.output
    assert (message.type, answer.output_text) == ("message", "One moment.")
    assert first.type == second.type == "function_call"
    assert json.loads(first.arguments) == {"place": "Paris"}
    assert first.call_id != second.call_id
    outputs: list[Any] = [
        {"type": "function_call_output", "call_id": first.call_id, "output": "rain"},
        {"type": "function_call_output", "call_id": second.call_id, "output": [{"type": "input_text", "text": "sun"}]},
    ]
    chained = await client.responses.create(
        model="chat", previous_response_id=answer.id, input=outputs, tools=asked["tools"], max_output_tokens=3
    )
    whole: list[Any] = [
        {"role": "user", "content": asked["input"]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        *[item.to_dict() for item in answer.output],
        *outputs,
    ]
    spelled = await client.responses.create(model="chat", input=whole, tools=asked["tools"], max_output_tokens=3)
    prompt = await prompt_of(service, chained.id)
    assert "One moment.\n<tool_call>\n" in prompt
    assert "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>" in prompt
    assert await prompt_of(service, spelled.id) == prompt
    items = (await service.client.get(f"/v1/responses/{spelled.id}/input_items", params={"order": "asc"})).json()
    ResponseItemList.model_validate(items)
    assert [item["type"] for item in items["data"]] == [
        "message", "message", "function_call", "function_call", "function_call_output", "function_call_output"
    ]  # fmt: skip
    single = await client.responses.create(**asked, parallel_tool_calls=False)
    assert [item.type for item in single.output] == ["message", "function_call"]


async def test_a_call_that_is_required_comes_alone(client: openai.AsyncOpenAI, service: Service) -> None:
    for choice in ("required", {"type": "function", "name": "weather"}):
        asked: dict[str, Any] = {
            "model": "chat", "input": "Paris?", "tools": [WEATHER], "tool_choice": choice, "temperature": 0,
        }  # fmt: skip
        answer = valid(await client.responses.create(**asked))
        assert answer.tool_choice == choice or answer.tool_choice.name == "weather"  # type: ignore[union-attr]
        (call,) = answer.output
        assert call.type == "function_call"
        assert isinstance(json.loads(call.arguments)["place"], str)
        events = events_of((await service.client.post("/v1/responses", json=asked | {"stream": True})).text)
        deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
        assert [event["type"] for event in events] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            *["response.function_call_arguments.delta"] * len(deltas),
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert "".join(deltas) == call.arguments


async def test_only_an_ended_response_is_gone_on_from(api: Service) -> None:
    pending = (await api.client.post("/v1/responses", json={"model": "chat", "input": "x", "background": True})).json()[
        "id"
    ]
    body = {"model": "chat", "input": "x", "previous_response_id": pending}
    for why in ("has not ended", "failed"):
        answer = await api.client.post("/v1/responses", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")
        assert why in answer.json()["error"]["message"]
        await api.client.post(f"/v1/responses/{pending}/cancel")


async def test_items_may_be_named_by_their_ids(client: openai.AsyncOpenAI, service: Service) -> None:
    """As the AI SDK does on every second turn."""
    asked: Any = {"model": "chat", "tools": [WEATHER]}
    first = await client.responses.create(**asked, input=emit(f"One moment.\n{CALL}{CALL}"))
    items = [item.to_dict() for item in first.output]
    answers = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}
        for item in items
        if "name" in item
    ]
    given = [{"role": "user", "content": emit(f"One moment.\n{CALL}{CALL}")}]
    spelled = await client.responses.create(**asked, input=[*given, *items, *answers], max_output_tokens=3)
    named: list[Any] = [{"type": "item_reference", "id": item["id"]} for item in items]
    second = await client.responses.create(**asked, input=[*given, *named, *answers], max_output_tokens=3)
    prompt = await prompt_of(service, spelled.id)
    assert await prompt_of(service, second.id) == prompt
    inputs = [item.id async for item in client.responses.input_items.list(spelled.id, order="asc")]
    assert not {item["id"] for item in items} & set(inputs)
    # OpenAI's own types let the type be left out.
    again = await client.responses.create(**asked, input=[{"id": id_} for id_ in inputs], max_output_tokens=3)
    assert await prompt_of(service, again.id) == prompt
    for id_ in (f"{named[0]['id']}_9", named[0]["id"].replace("msg", "rs"), inputs[0] + "7"):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.responses.create(**asked, input=[*given, {"type": "item_reference", "id": id_}])
        assert (missing.value.param, id_ in missing.value.message) == ("input[1].id", True)


async def test_a_call_that_was_cut_off_is_taken_back(client: openai.AsyncOpenAI, service: Service) -> None:
    asked: Any = {"model": "chat", "input": "Paris?", "tools": [WEATHER], "max_output_tokens": 4}
    cut = await client.responses.create(**asked, tool_choice={"type": "function", "name": "weather"})
    (call,) = cut.output
    assert call.type == "function_call"
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(call.arguments)
    answer: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "It was cut off."}
    for arguments in (call.arguments, '{"place": "Par', '["\\ud800"]', "[" * 900, '{"a": NaN}'):
        whole: Any = [{"role": "user", "content": "Paris?"}, call.to_dict() | {"arguments": arguments}, answer]
        after = await client.responses.create(model="chat", input=whole, tools=[WEATHER], max_output_tokens=3)
        assert json.dumps(arguments)[1:-1][:200] in (await prompt_of(service, after.id)).replace("\\/", "/")


async def test_nobody_goes_on_from_another_owners_response(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(auth_required=True)
    async with running_api(settings) as api, open_database(settings) as database, running_dispatcher(settings):
        keys = [(await Keys(database).create(NewKey(name), KEYLESS))[1] for name in ("alice", "bob")]
        async with client_of(api, api_key=keys[0]) as alice, client_of(api, api_key=keys[1]) as bob:
            hers = await alice.responses.create(model="chat", input=emit("A secret."))
            with pytest.raises(openai.NotFoundError) as refused:
                await bob.responses.create(model="chat", input="And?", previous_response_id=hers.id)
            assert refused.value.param == "previous_response_id"
            with pytest.raises(openai.NotFoundError) as named:
                await bob.responses.create(model="chat", input=[{"type": "item_reference", "id": hers.output[0].id}])
            assert named.value.param == "input[0].id"
            assert (await alice.responses.retrieve(hers.id)).output_text == "A secret."
