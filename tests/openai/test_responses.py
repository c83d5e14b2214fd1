"""/v1/responses through the official client."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from app.config import Settings
from tests.engine import busy
from tests.openai.conftest import client_of
from tests.openai.response_kit import WEATHER, emit, ended, events_of, prompt_of, uuid_of, valid
from tests.servers import RunningTriton
from tests.service import Service, eventually, running_api, running_dispatcher


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


async def test_ids_of_other_things_are_not_found(client: openai.AsyncOpenAI, service: Service) -> None:
    chat = await client.chat.completions.create(model="chat", messages=[{"role": "user", "content": emit("Hi.")}])
    digits = chat.id.removeprefix("chatcmpl-")
    for id_ in (chat.id, f"resp_{digits}", "resp_x", "resp_" + "0" * 32):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            answer = await service.client.request(method, f"/v1/responses/{id_}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


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
