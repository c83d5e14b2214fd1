"""Every error below /v1 has OpenAI's form, and names what is wrong."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from app.config import Settings
from tests.openai.conftest import client_of
from tests.service import Service, eventually, running_api, running_dispatcher

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}


def check_error(answer: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert len(error["message"]) > 10
    return str(error["message"])


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"model": ""}, "invalid_request", "model"),
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": [{"role": "user"}]}, "invalid_request", "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_request", "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "unsupported_parameter",
            "messages[0].content[0].image_url",
        ),
        *(
            (
                {"tool_choice": "required", "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"$defs": shared}}}]},
                "invalid_request",
                "tools",
            )
            for shared in ([1], "ab", 5)
        ),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "invalid_request", None),
        ({"temperature": 3}, "invalid_request", "temperature"),
        ({"temperature": "hot"}, "invalid_request", "temperature"),
        ({"temperature": 0, "n": 2}, "invalid_request", "n"),
        ({"top_p": 0}, "invalid_request", "top_p"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
        ({"max_completion_tokens": 0}, "invalid_request", "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "invalid_request", "max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "invalid_parameters", "min_tokens"),
        ({"stop": [""]}, "invalid_request", "stop"),
        ({"stop": ["x"] * 65}, "invalid_request", "stop"),
        ({"logit_bias": {"1": 50}}, "unsupported_parameter", "logit_bias"),
        ({"logit_bias": [1]}, "invalid_request", "logit_bias"),
        ({"top_logprobs": 3}, "invalid_request", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_request", "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "invalid_request", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "invalid_request", "response_format.json_schema"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "invalid_request", "structured_outputs"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "invalid_request", "guided_regex"),
        ({"service_tier": "priority"}, "invalid_request", "service_tier"),
        ({"use_beam_search": True}, "unsupported_parameter", "use_beam_search"),
        ({"length_penalty": True}, "unsupported_parameter", "length_penalty"),
        ({"return_token_ids": True}, "unsupported_parameter", "return_token_ids"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "invalid_request", "continue_final_message"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "function"}},
         "invalid_request", "tool_choice.function"),
        ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
        ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities"),
        ({"prediction": {}}, "unsupported_parameter", "prediction"),
        ({"reasoning_effort": 3}, "invalid_request", "reasoning_effort"),
        ({"web_search_options": {}}, "unsupported_parameter", "web_search_options"),
        ({"tempratur": 1}, "unsupported_parameter", "tempratur"),
        ({"chat_template_kwargs": {"messages": []}}, "invalid_request", "chat_template_kwargs"),
        ({"model": "tiny"}, "no_chat_template", None),
    ],
)  # fmt: skip
async def test_what_cannot_be_asked_is_refused(api: Service, changes: Any, code: str, param: str | None) -> None:
    check_error(await api.client.post("/v1/chat/completions", json=CHAT | changes), 400, code, param)
    assert (await api.client.get("/results/")).json() == []


async def test_what_is_wrong_with_no_parameter_is_named_too(api: Service) -> None:
    answer = await api.client.post("/v1/chat/completions", json=CHAT | {"user": "a\x00b"})
    assert check_error(answer, 400, "invalid_request").startswith("The body: must not contain NUL")
    answer = await api.client.post("/v1/chat/completions", content="[]", headers={"Content-Type": "application/json"})
    assert check_error(answer, 400, "invalid_request").startswith("The body: ")
    answer = await api.client.post("/v1/chat/completions", json=CHAT, headers={"Idempotency-Key": ""})
    assert check_error(answer, 400, "invalid_request", "Idempotency-Key").startswith("Idempotency-Key: ")


async def test_null_counts_as_left_out(service: Service) -> None:
    nothing = dict.fromkeys(
        ("temperature", "top_p", "n", "stop", "tools", "audio", "functions", "stream", "stream_options", "seed")
    )
    answer = await service.client.post("/v1/chat/completions", json=CHAT | nothing | {"logprobs": False})
    assert answer.status_code == 200


async def test_a_model_without_a_template_says_which_file_to_add(api: Service) -> None:
    answer = await api.client.post("/v1/chat/completions", json=CHAT | {"model": "tiny"})
    assert "tiny/1/chat_template.jinja" in check_error(answer, 400, "no_chat_template")


async def test_bodies_that_are_none(make_settings: Callable[..., Settings]) -> None:
    async with running_api(make_settings(max_body_bytes=2000)) as api:
        url = "/v1/chat/completions"
        json_type = {"Content-Type": "application/json"}
        check_error(await api.client.post(url, content=b"{", headers=json_type), 400, "malformed_body")
        check_error(await api.client.post(url, content=b"x", headers={"Content-Type": "text/plain"}), 415,
                    "unsupported_media_type", )  # fmt: skip
        check_error(await api.client.post(url, json=CHAT | {"user": "x" * 3000}), 413, "body_too_large")
        check_error(await api.client.post(url, json=[]), 400, "invalid_request", None)


async def test_addresses_that_are_none(api: Service) -> None:
    check_error(await api.client.get("/v1/nothing"), 404, "not_found")
    for kind in ("file", "batch", "conversation"):
        plural = {"batch": "batches"}.get(kind, f"{kind}s")
        check_error(await api.client.get(f"/v1/{plural}/{kind}"), 404, f"{kind}_not_found")
    answer = await api.client.get("/v1/chat/completions")
    check_error(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]
    for id_ in ("chatcmpl-1", "chatcmpl-" + "0" * 32, "nonsense"):
        check_error(await api.client.get(f"/v1/chat/completions/{id_}"), 404, "not_found")


async def test_an_id_is_of_one_kind_only(client: openai.AsyncOpenAI, service: Service) -> None:
    answer = await client.completions.create(model="tiny", prompt="x", max_tokens=1)
    other = "chatcmpl-" + answer.id.removeprefix("cmpl-")
    check_error(await service.client.get(f"/v1/chat/completions/{other}"), 404, "not_found")
    native = await service.send(prompt="x")
    check_error(await service.client.get(f"/v1/completions/cmpl-{native.replace('-', '')}"), 404, "not_found")


async def test_a_prompt_that_is_too_long(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model="tiny", prompt="word " * 400)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert "cmpl-" in refused.value.message
    with pytest.raises(openai.BadRequestError, match=r"This model's maximum context length is 256 tokens") as streamed:
        await client.completions.create(model="tiny", prompt="word " * 400, stream=True)
    assert streamed.value.code == "context_length_exceeded"


async def test_an_engine_in_trouble_is_a_bad_gateway_and_not_retried(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(max_attempts=1)
    async with (
        running_api(settings) as service,
        running_dispatcher(settings),
        client_of(service, max_retries=3) as client,
    ):
        with pytest.raises(openai.InternalServerError) as failed:
            await client.completions.create(model="tiny", prompt="[[sim:error=something broke]]")
        assert (failed.value.status_code, failed.value.code) == (502, "engine_error")
        assert len((await service.client.get("/results/")).json()) == 1
        with pytest.raises(openai.InternalServerError, match="something broke") as early:
            await client.completions.create(model="tiny", prompt="[[sim:error=something broke]]", stream=True)
        assert (early.value.status_code, early.value.code) == (502, "engine_error")


async def test_what_the_engine_cannot_compile_is_a_bad_request(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model="tiny", prompt="x", extra_body={"guided_regex": "("})
    assert refused.value.code == "invalid_parameters"
    assert "Grammar error: invalid regex" in refused.value.message


async def test_a_cancelled_answer_is_a_conflict(service: Service) -> None:
    body = {"model": "slow", "prompt": "x", "max_tokens": 3000, "ignore_eos": True}
    asking = asyncio.create_task(service.client.post("/v1/completions", json=body))

    async def running() -> Any:
        return (await service.client.get("/results/")).json()

    (result,) = await eventually(running, "the ticket")
    await service.client.post(f"/results/{result['id']}/cancel")
    message = check_error(await asking, 409, "cancelled")
    assert f"cmpl-{result['id'].replace('-', '')}" in message


async def test_a_database_that_is_away(make_settings: Callable[..., Settings]) -> None:
    async with running_api(make_settings(database_url="postgresql://nobody:x@127.0.0.1:9/none")) as api:
        answer = await api.client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        message = check_error(answer, 503, "database_unavailable")
        assert "stored" in message


async def test_a_request_id_is_on_every_answer(api: Service) -> None:
    for path in ("/health/live", "/results/", "/v1/nothing", "/nothing"):
        assert (await api.client.get(path)).headers["x-request-id"].startswith("req_")
    given = await api.client.get("/v1/models", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    for unfit in ("x" * 201, "with space"):
        answer = await api.client.get("/v1/models", headers={"X-Request-Id": unfit})
        assert answer.headers["x-request-id"].startswith("req_")


async def test_a_defect_has_a_request_id_too(api: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("app.prompts.templates.Templates.render", defect)
    answer = await api.client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "mine"})
    check_error(answer, 500, "internal_error")
    assert answer.headers.get_list("x-request-id") == ["mine"]
