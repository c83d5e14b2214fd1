"""/v1/responses through the official client."""

import asyncio
import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from app.config import Settings
from app.db.engine import open_database
from app.queue.audit import KEYLESS
from app.services.keys import Keys, NewKey
from tests.engine import busy
from tests.openai.conftest import client_of
from tests.servers import RunningTriton
from tests.service import Process, Service, eventually, running_api, running_dispatcher

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"place": "Paris"}}</tool_call>'
LONG = "Some words, and then some more of them. " * 5


def emit(text: str, *marks: str) -> str:
    encoded = base64.b64encode(text.encode()).decode()
    return f"[[sim:emit64={encoded}]]" + "".join(f"[[sim:{mark}]]" for mark in marks)


def uuid_of(id_: str) -> str:
    digits = id_.removeprefix("resp_")
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def valid(response: Response) -> Response:
    """The answer again, held to the client's own types; its constructor takes anything."""
    return Response.model_validate(response.to_dict(), strict=False)


async def prompt_of(service: Service, id_: str) -> str:
    result = await service.result(uuid_of(id_))
    return str((await service.client.get(f"/contexts/{result['context_id']}")).json()["content"])


async def ended(client: openai.AsyncOpenAI, id_: str) -> Response:
    async def final() -> Response | None:
        found = await client.responses.retrieve(id_)
        return None if found.status in ("queued", "in_progress") else found

    found: Response = await eventually(final, "the end of the response")
    return found


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream as it is on the wire, checked against their names and numbers."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            document = json.loads(fields["data"])
            assert (fields["event"], int(fields["id"])) == (document["type"], document["sequence_number"])
            EVENT.validate_python(document)
            found.append(document)
    return found


async def test_a_response_is_answered_and_is_a_ticket_like_any_other(
    client: openai.AsyncOpenAI, service: Service
) -> None:
    answer = valid(
        await client.responses.create(
            model="chat",
            input=emit("Good morning."),
            instructions="Be brief.",
            metadata={"study": "a"},
            temperature=0.3,
            top_p=0.8,
            max_output_tokens=50,
            user="u-1",
            extra_body={"seed": 3, "top_k": 5},
        )
    )
    assert (answer.status, answer.output_text, answer.error) == ("completed", "Good morning.", None)
    assert (answer.metadata, answer.temperature, answer.max_output_tokens) == ({"study": "a"}, 0.3, 50)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    result = await service.result(uuid_of(answer.id))
    assert (result["status"], result["output"]) == ("completed", "Good morning.")
    assert result["parameters"] == {
        "n": 1, "temperature": 0.3, "top_p": 0.8, "max_tokens": 50, "seed": 3, "top_k": 5
    }  # fmt: skip
    assert (await prompt_of(service, answer.id)).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    assert (await client.responses.retrieve(answer.id)).to_dict() == answer.to_dict()


async def test_the_blocking_client_works_too(service: Service) -> None:
    def ask() -> list[Any]:
        url = f"{str(service.client.base_url).rstrip('/')}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as blocking:
            made = blocking.responses.create(model="chat", input=emit("Yes."), background=True)
            first = made.status
            while made.status in ("queued", "in_progress"):
                made = blocking.responses.retrieve(made.id)
            with blocking.responses.stream(response_id=made.id) as stream:
                told = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            items = list(blocking.responses.input_items.list(made.id))
            blocking.responses.delete(made.id)
            return [first, made.output_text, told, len(items)]

    assert await asyncio.to_thread(ask) == ["queued", "Yes.", "Yes.", 1]


async def test_a_stream_tells_the_response_in_openais_order(client: openai.AsyncOpenAI, service: Service) -> None:
    body = {"model": "chat", "input": emit(LONG, "slow=10"), "stream": True}
    events = events_of((await service.client.post("/v1/responses", json=body)).text)
    kinds = [event["type"] for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 3
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    assert "".join(event["delta"] for event in events if "delta" in event) == LONG
    response = events[-1]["response"]
    assert (await client.responses.retrieve(response["id"])).to_dict() == response
    assert events[-2]["item"] == response["output"][0]


async def test_the_clients_own_stream_accepts_it(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="chat", input=emit(f"One moment.{CALL}"), tools=[WEATHER]) as stream:  # type: ignore[list-item]
        texts = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert texts[-1] == "One moment."
    assert [item.type for item in final.output] == ["message", "function_call"]


async def test_parsed_output(client: openai.AsyncOpenAI) -> None:
    class Age(BaseModel):
        age: int

    answer = await client.responses.parse(model="chat", input="How old?", text_format=Age)
    assert isinstance(answer.output_parsed, Age)
    free = await client.responses.create(model="chat", input="?", text={"format": {"type": "json_object"}})
    assert isinstance(json.loads(free.output_text), dict)
    assert valid(free).text is not None


async def test_in_the_background(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    async with running_api(settings) as api, client_of(api) as client:
        made = valid(await client.responses.create(model="chat", input=emit("Later."), background=True))
        assert (made.status, made.output, made.background) == ("queued", [], True)
        assert (await client.responses.retrieve(made.id)).status == "queued"
        with pytest.raises(openai.ConflictError) as pending:
            await client.responses.delete(made.id)
        assert pending.value.code == "result_pending"
        async with running_dispatcher(settings):
            done = valid(await ended(client, made.id))
        assert (done.status, done.output_text) == ("completed", "Later.")
        assert done.completed_at is not None


async def test_a_background_stream_can_be_left_and_read_again(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="chat", input=emit(LONG, "slow=20"), background=True, stream=True)
    said, id_, last = "", "", -1
    async for event in stream:
        last = event.sequence_number
        if event.type == "response.created":
            id_, status = event.response.id, event.response.status
        if event.type == "response.output_text.delta":
            said += event.delta
            break
    await stream.close()
    assert status == "queued"
    assert (await client.responses.retrieve(id_)).status == "in_progress"
    async for event in await client.responses.retrieve(id_, stream=True, starting_after=last):
        assert event.sequence_number > last
        if event.type == "response.output_text.delta":
            said += event.delta
    assert said == LONG


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["text", "tools"])
async def test_a_stream_goes_on_after_any_event_from_any_process(
    service: Service, make_settings: Callable[..., Settings], tools: list[Any]
) -> None:
    body = {"model": "chat", "input": emit(f"{LONG}{CALL}{CALL}" if tools else LONG, "slow=8"), "tools": tools}
    whole = events_of((await service.client.post("/v1/responses", json=body | {"stream": True})).text)
    path = f"/v1/responses/{whole[0]['response']['id']}"
    async with running_api(make_settings()) as other:
        for place, event in enumerate(whole):
            number = event["sequence_number"]
            for api in (service, other):
                rest = await api.client.get(path, params={"stream": "true", "starting_after": number})
                assert events_of(rest.text) == whole[place + 1 :]
        by_header = await other.client.get(
            path, params={"stream": "true"}, headers={"Last-Event-ID": str(whole[3]["sequence_number"])}
        )
        assert events_of(by_header.text) == whole[4:]
    assert len(whole) > 10


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["text", "tools"])
async def test_a_stream_that_is_cut_again_and_again_while_it_runs_loses_nothing(
    client: openai.AsyncOpenAI, service: Service, make_settings: Callable[..., Settings], tools: list[Any]
) -> None:
    draw = random.Random(5)
    text = f"{LONG}{CALL}" if tools else LONG
    made = await client.responses.create(model="chat", input=emit(text, "slow=15"), background=True, tools=tools)
    seen: list[dict[str, Any]] = []
    cuts = 0
    async with running_api(make_settings()) as other, client_of(other) as elsewhere:
        while not seen or seen[-1]["type"] != "response.completed":
            after = {"starting_after": seen[-1]["sequence_number"]} if seen else {}
            stream = await draw.choice((client, elsewhere)).responses.retrieve(made.id, stream=True, **after)
            left = draw.randrange(1, 6)
            async for event in stream:
                seen.append(event.to_dict())
                left -= 1
                if not left:
                    break
            await stream.close()
            cuts += 1
    assert cuts > 3
    numbers = [event["sequence_number"] for event in seen]
    assert numbers == sorted(set(numbers))
    whole = (await service.client.get(f"/v1/responses/{made.id}", params={"stream": "true"})).text
    assert seen == events_of(whole)
    assert "".join(event["delta"] for event in seen if event["type"].endswith("text.delta")) == LONG[
        : len(LONG)
    ].rstrip(" " if tools else "")


async def test_a_stream_whose_events_are_gone_is_not_gone_on_with(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(stream_retention_seconds=0.5)
    async with running_api(settings) as api, running_dispatcher(settings):
        body = {"model": "chat", "input": emit(LONG), "stream": True}
        whole = events_of((await api.client.post("/v1/responses", json=body)).text)
        path = f"/v1/responses/{whole[0]['response']['id']}"

        async def expired() -> Any:
            answer = await api.client.get(path, params={"stream": "true", "starting_after": 5})
            return answer if answer.status_code == 410 else None

        refused = await eventually(expired, "the events are gone")
        assert refused.json()["error"]["code"] == "stream_expired"
        again = events_of((await api.client.get(path, params={"stream": "true"})).text)
        assert [event["delta"] for event in again if "delta" in event] == [LONG]
        assert again[-1]["response"] == whole[-1]["response"]


@pytest.mark.parametrize("same", [True, False])
async def test_another_attempt_goes_on_or_is_told_to_say_something_else(
    make_settings: Callable[..., Settings], tmp_path: Path, same: bool
) -> None:
    settings = make_settings(lease_seconds=1.0)
    body = {"model": "chat", "input": "[[sim:slow=20]]", "max_output_tokens": 60, "ignore_eos": True, "stream": True}
    body |= {"seed": 5} if same else {"temperature": 1.0}
    async with running_api(settings) as api:
        async with Process("app.worker", settings, tmp_path / "dispatcher.log") as first:
            await first.says("dispatching")
            async with api.client.stream("POST", "/v1/responses", json=body) as answer:
                text = ""
                async for part in answer.aiter_text():
                    text += part
                    if text.count("text.delta") > 8:
                        break
                seen = events_of(text.rpartition("\n\n")[0])
                first.kill()
        path = f"/v1/responses/{seen[0]['response']['id']}"
        last = seen[-1]["sequence_number"]
        async with running_dispatcher(settings):
            rest = await api.client.get(path, params={"stream": "true", "starting_after": last})
            late = await api.client.get(path, params={"stream": "true", "starting_after": last})
            whole = events_of((await api.client.get(path, params={"stream": "true"})).text)
        assert whole[-1]["type"] == "response.incomplete"
        said = "".join(event["delta"] for event in whole if "delta" in event)
        assert said == whole[-1]["response"]["output"][0]["content"][0]["text"]
        if same:
            assert seen + events_of(rest.text) == whole
        else:
            for told in (events_of(rest.text)[-1], *events_of(late.text)):
                assert (told["type"], told["code"]) == ("error", "stream_restarted")
            assert events_of(late.text)[0]["sequence_number"] == last


async def test_cut_off_by_max_output_tokens(client: openai.AsyncOpenAI, service: Service) -> None:
    asked: dict[str, Any] = {"model": "chat", "input": "Tell me.", "max_output_tokens": 5}
    answer = valid(await client.responses.create(**asked, extra_body={"ignore_eos": True}))
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"  # type: ignore[union-attr]
    body = asked | {"stream": True, "ignore_eos": True}
    events = events_of((await service.client.post("/v1/responses", json=body)).text)
    assert events[-1]["type"] == "response.incomplete"


async def test_a_failed_response(client: openai.AsyncOpenAI, service: Service) -> None:
    too_long = "word " * 6000
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="chat", input=too_long)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    made = await client.responses.create(model="chat", input=too_long, background=True)
    failed = valid(await ended(client, made.id))
    assert (failed.status, failed.output) == ("failed", [])
    assert failed.error is not None
    assert (failed.error.code, failed.error.type) == ("invalid_prompt", "prompt_too_long")
    stream = await service.client.get(f"/v1/responses/{made.id}", params={"stream": "true"})
    assert [event["type"] for event in events_of(stream.text)] == [
        "response.created", "response.in_progress", "response.failed"
    ]  # fmt: skip


async def test_cancel(client: openai.AsyncOpenAI, service: Service, triton: RunningTriton) -> None:
    made = await client.responses.create(model="chat", input="[[sim:hang]]", background=True, stream=False)

    async def running() -> bool:
        return (await client.responses.retrieve(made.id)).status == "in_progress"

    await eventually(running, "the response runs")
    following = asyncio.create_task(service.client.get(f"/v1/responses/{made.id}", params={"stream": "true"}))
    cancelled = valid(await client.responses.cancel(made.id))
    assert (cancelled.status, cancelled.output, cancelled.error) == ("cancelled", [], None)
    assert (await client.responses.cancel(made.id)).to_dict() == cancelled.to_dict()
    last = events_of((await following).text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "cancelled")

    async def idle() -> bool:
        return await busy(triton, "chat") == 0

    await eventually(idle, "the engine stops")
    done = await client.responses.create(model="chat", input=emit("Done."))
    assert (await client.responses.cancel(done.id)).to_dict() == done.to_dict()


async def test_delete(client: openai.AsyncOpenAI, service: Service) -> None:
    first = await client.responses.create(model="chat", input=emit("First."))
    context = (await service.result(uuid_of(first.id)))["context_id"]
    second = await client.responses.create(model="chat", input=emit("Second."), previous_response_id=first.id)
    again = (await service.client.post(f"/results/{uuid_of(first.id)}/retry")).json()["result_id"]
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete("resp_" + "0" * 32)
    await service.settled(again)
    answer = await service.client.delete(f"/v1/responses/{first.id}")
    assert answer.json() == {"id": first.id, "object": "response", "deleted": True}
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            await gone(first.id)
    assert (await service.client.get(f"/results/{uuid_of(first.id)}")).status_code == 404
    # The retry was made of the same prompt; the response that went on took what it needed.
    assert (await service.client.get(f"/contexts/{context}")).status_code == 200
    third = await client.responses.create(model="chat", input=emit("Third."), previous_response_id=second.id)
    assert "First." in await prompt_of(service, third.id)
    await client.responses.delete("resp_" + again.replace("-", ""))
    assert (await service.client.get(f"/contexts/{context}")).status_code == 404


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


async def test_logprobs(service: Service) -> None:
    asked: Any = {
        "model": "chat", "input": "Tell me.", "include": ["message.output_text.logprobs"], "top_logprobs": 2,
        "max_output_tokens": 8,
    }  # fmt: skip
    body = asked | {"seed": 3}
    answer = valid(Response.model_validate((await service.client.post("/v1/responses", json=body)).json()))
    part = answer.output[0].content[0]  # type: ignore[union-attr, index]
    assert "".join(token.token for token in part.logprobs) == answer.output_text  # type: ignore[union-attr]
    assert {len(token.top_logprobs) for token in part.logprobs} == {2}  # type: ignore[union-attr]
    events = events_of((await service.client.post("/v1/responses", json=body | {"stream": True})).text)
    told = [token for event in events if event["type"].endswith("text.delta") for token in event["logprobs"]]
    assert told == answer.to_dict()["output"][0]["content"][0]["logprobs"]  # type: ignore[index]


async def test_the_same_key_gives_the_same_response(client: openai.AsyncOpenAI) -> None:
    async def ask(text: str) -> Response:
        return await client.responses.create(
            model="chat", input=text, background=True, extra_headers={"Idempotency-Key": "r-1"}
        )

    first = await ask("Tell me.")
    assert (await ask("Tell me.")).id == first.id
    with pytest.raises(openai.BadRequestError) as other:
        await ask("Something else.")
    assert other.value.code == "idempotency_mismatch"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        ({"input": [{"id": "fc_" + "0" * 32 + "_0"}]}, "input[0].id"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {
                "input": [
                    {"role": "system", "content": [{"type": "input_image", "image_url": "data:image/png;base64,YQ=="}]}
                ]
            },
            "input[0].content[0].type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
            "input[0].content[0].file_id",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools[0].type"),
        ({"tools": [{"type": None, "name": "f"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"store": False, "background": True}, "background"),
        ({"truncation": "middle"}, "truncation"),
        ({"reasoning": {"effort": "utmost"}}, "reasoning.effort"),
        ({"text": {"verbosity": "shrill"}}, "text.verbosity"),
        ({"include": ["everything"]}, "include[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"inptu": "x"}, "inptu"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(api: Service, changes: Any, param: str) -> None:
    body = {"model": "chat", "input": "x"} | changes
    answer = await api.client.post("/v1/responses", json=body)
    named = param == "previous_response_id" or (param == "input[0].id" and "id" in changes["input"][0])
    assert answer.status_code == (404 if named else 400)
    assert answer.json()["error"]["param"] == param
    assert (await api.client.get("/results/")).json() == []


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


async def test_ids_of_other_things_are_not_found(client: openai.AsyncOpenAI, service: Service) -> None:
    chat = await client.chat.completions.create(model="chat", messages=[{"role": "user", "content": emit("Hi.")}])
    digits = chat.id.removeprefix("chatcmpl-")
    for id_ in (chat.id, f"resp_{digits}", "resp_x", "resp_" + "0" * 32):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            answer = await service.client.request(method, f"/v1/responses/{id_}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


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


async def test_what_asks_for_nothing_is_accepted(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.with_raw_response.create(
        model="chat",
        input=emit("Yes."),
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "low", "summary": "auto"},
        truncation="auto",
        text={"verbosity": "low"},
        max_tool_calls=3,
        prompt_cache_key="k",
        safety_identifier="s",
        tools=[{"type": "web_search"}, WEATHER, {"type": "namespace\r\nx: y"}],  # type: ignore[list-item]
        tool_choice="auto",
        extra_body={"client_metadata": {"x": "y"}},
    )
    response = valid(answer.parse())
    assert (response.output_text, response.truncation) == ("Yes.", "auto")
    assert (response.reasoning.effort, response.text.verbosity) == ("low", "low")  # type: ignore[union-attr]
    assert [tool.type for tool in response.tools] == ["function"]
    assert answer.headers["x-ignored"] == "tools[0]=web_search, tools[2]=?"
    alone = await client.responses.create(model="chat", input=emit("Yes."), tools=[{"type": "web_search"}])
    assert alone.output_text == "Yes."


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
