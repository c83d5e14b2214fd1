"""Bad input: a clear 4xx, never a 5xx, and nothing half-stored."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from tests.service import Service

JSON = {"content-type": "application/json"}


async def stored(api: Service) -> tuple[int, int]:
    contexts = (await api.client.get("/contexts/?limit=1000")).json()
    results = (await api.client.get("/results/?limit=1000")).json()
    return len(contexts), len(results)


def check_problem(answer: Any, status: int, code: str, *words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"].endswith(code)
    assert problem["title"]
    for word in words:
        assert word in answer.text
    for leak in ("Traceback", "/app/", "site-packages", "asyncpg", "sqlalchemy"):
        assert leak not in answer.text
    return problem


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"", 422, "invalid_request", "body"),
        (b"{", 400, "malformed_body", None),
        (b"nope", 400, "malformed_body", None),
        (b"\xff\xfe{}", 400, "malformed_body", None),
        (b'{"content": "\\ud800"}', 400, "malformed_body", None),
        (b'{"content": "x", "metadata": {"a": NaN}}', 400, "malformed_body", None),
        (b'{"content": "x", "metadata": {"a": 1e999}}', 422, "invalid_request", "metadata"),
        (b'{"content": "x", "metadata": {"a": ' + b"9" * 5000 + b"}}", 400, "malformed_body", None),
        (b'{"content": "x", "metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", 400, "malformed_body", None),
        (b"[]", 422, "invalid_request", "body"),
        (b'"text"', 422, "invalid_request", "body"),
        # A text or tensors, and neither is there.
        (b"{}", 422, "invalid_request", "body"),
        (b'{"content": ""}', 422, "invalid_request", "content"),
        (b'{"content": 7}', 422, "invalid_request", "content"),
        (b'{"content": null}', 422, "invalid_request", "body"),
        (b'{"content": "a\\u0000b"}', 422, "invalid_request", "content"),
        (b'{"content": "x", "metadata": {"a\\u0000": 1}}', 422, "invalid_request", "metadata"),
        (b'{"content": "x", "metadata": {"a": ["\\u0000"]}}', 422, "invalid_request", "metadata"),
        (b'{"content": "x", "metadata": []}', 422, "invalid_request", "metadata"),
        (b'{"content": "x", "contents": "y"}', 422, "invalid_request", "contents"),
    ],
)
async def test_a_bad_context_is_refused(api: Service, body: bytes, status: int, code: str, field: str | None) -> None:
    problem = check_problem(await api.client.post("/contexts/", content=body, headers=JSON), status, code)
    if field:
        assert problem["errors"][0]["field"].split(".")[0] == field
        assert problem["errors"][0]["message"]
    assert await stored(api) == (0, 0)


async def test_content_over_its_limit_is_refused(api: Service) -> None:
    limit = api.settings.max_content_chars
    at_limit = await api.client.post("/contexts/", json={"content": "x" * limit})
    assert at_limit.status_code == 201
    over = await api.client.post("/contexts/", json={"content": "x" * (limit + 1)})
    check_problem(over, 422, "invalid_request", "1,000,000")


async def test_a_body_over_its_limit_is_refused_whether_its_length_is_declared_or_not(api: Service) -> None:
    body = json.dumps({"content": "x" * api.settings.max_body_bytes}).encode()
    check_problem(await api.client.post("/contexts/", content=body, headers=JSON), 413, "body_too_large")

    async def chunks() -> Any:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]
            await asyncio.sleep(0)

    check_problem(await api.client.post("/contexts/", content=chunks(), headers=JSON), 413, "body_too_large")
    assert await stored(api) == (0, 0)


@pytest.mark.parametrize("values", ["[]," * 40_000 + "1", "1," * 300_000 + "1"])
async def test_a_body_of_too_many_values_is_refused(api: Service, values: str) -> None:
    body = f'{{"content": "x", "metadata": {{"a": [{values}]}}}}'
    answer = await api.client.post("/contexts/", content=body, headers=JSON)
    check_problem(answer, 413, "body_too_large", "32,000 lists, objects and keys", "250,000 values")
    body = f'{{"model": "tiny", "prompt": "x", "structured_outputs": {{"json": {{"a": [{values}]}}}}}}'
    answer = await api.client.post("/v1/completions", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert "32,000 lists" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "most", "value"),
    [("allowed_token_ids", 100_000, 1), ("stop_token_ids", 1024, 1), ("bad_words", 1024, "x")],
)
async def test_lists_of_parameters_have_a_bound(api: Service, name: str, most: int, value: Any) -> None:
    context = await api.context()
    answer = await api.client.post(f"/models/send/tiny/{context}", json={"parameters": {name: [value] * (most + 1)}})
    check_problem(answer, 422, "invalid_request", f"at most {most} items")
    await api.send(context, parameters={name: [value] * most})


async def test_a_chunked_body_within_its_limit_is_taken(api: Service) -> None:
    async def chunks() -> Any:
        yield b'{"content": '
        yield b'"in two parts"}'

    answer = await api.client.post("/contexts/", content=chunks(), headers=JSON)
    assert answer.status_code == 201


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain"])
async def test_a_body_not_declared_as_json_is_refused(api: Service, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = await api.client.post("/contexts/", content=b'{"content": "x"}', headers=headers)
    check_problem(answer, 415, "unsupported_media_type", "application/json")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"priority": "high"}, "priority"),
        ({"priority": 101}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": -1}, "expires_in"),
        ({"expires_in": 1e9}, "expires_in"),
        ({"expires_in": "60"}, "expires_in"),
        ({"client_reference": ""}, "client_reference"),
        ({"client_reference": "x" * 201}, "client_reference"),
        ({"client_reference": "a\u0000"}, "client_reference"),
        ({"unknown": 1}, "unknown"),
        ({"parameters": []}, "parameters"),
        ({"parameters": {"temperature": -0.1}}, "parameters.temperature"),
        ({"parameters": {"temperature": "0.5"}}, "parameters.temperature"),
        ({"parameters": {"tempature": 1}}, "parameters.tempature"),
        ({"parameters": {"top_p": 0}}, "parameters.top_p"),
        ({"parameters": {"top_p": 2}}, "parameters.top_p"),
        ({"parameters": {"top_k": -2}}, "parameters.top_k"),
        ({"parameters": {"min_p": 1.1}}, "parameters.min_p"),
        ({"parameters": {"max_tokens": 0}}, "parameters.max_tokens"),
        ({"parameters": {"max_tokens": True}}, "parameters.max_tokens"),
        ({"parameters": {"min_tokens": -1}}, "parameters.min_tokens"),
        ({"parameters": {"min_tokens": 9, "max_tokens": 8}}, "parameters"),
        ({"parameters": {"min_tokens": 100000}}, "parameters"),
        ({"parameters": {"n": 0}}, "parameters.n"),
        ({"parameters": {"n": 2, "temperature": 0}}, "parameters"),
        ({"parameters": {"stop": [""]}}, "parameters.stop"),
        ({"parameters": {"stop": "a\u0000"}}, "parameters"),
        ({"parameters": {"stop": 5}}, "parameters.stop"),
        ({"parameters": {"seed": 2**63}}, "parameters.seed"),
        ({"parameters": {"presence_penalty": 2.1}}, "parameters.presence_penalty"),
        ({"parameters": {"frequency_penalty": -2.1}}, "parameters.frequency_penalty"),
        ({"parameters": {"repetition_penalty": 0}}, "parameters.repetition_penalty"),
        ({"parameters": {"logprobs": -1}}, "parameters.logprobs"),
        ({"parameters": {"logit_bias": {"5": 50}}}, "parameters.logit_bias"),
        ({"parameters": {"logit_bias": {"x": 1}}}, "parameters.logit_bias"),
        ({"parameters": {"allowed_token_ids": []}}, "parameters.allowed_token_ids"),
        ({"parameters": {"structured_outputs": {}}}, "parameters.structured_outputs"),
        ({"parameters": {"structured_outputs": {"regex": "a", "choice": ["b"]}}}, "parameters.structured_outputs"),
        ({"parameters": {"structured_outputs": {"regex": "\u0000"}}}, "parameters.structured_outputs.regex"),
        ({"parameters": {"structured_outputs": {"grammar": "x\u0000"}}}, "parameters.structured_outputs.grammar"),
        ({"parameters": {"structured_outputs": {"choice": ["\u0000"]}}}, "parameters.structured_outputs.choice"),
        ({"parameters": {"structured_outputs": {"json": {"\u0000": 1}}}}, "parameters.structured_outputs.json"),
        (
            {"parameters": {"structured_outputs": {"json_object": False, "regex": "a"}}},
            "parameters.structured_outputs.json_object",
        ),
        ({"parameters": {"prompt_logprobs": -1}}, "parameters.prompt_logprobs"),
        ({"parameters": {"stream": True}}, "parameters.stream"),
    ],
)
async def test_bad_options_are_refused_and_the_field_named(api: Service, options: Any, field: str) -> None:
    context = await api.context()
    answer = await api.client.post(f"/models/send/tiny/{context}", json=options)
    problem = check_problem(answer, 422, answer.json()["code"])
    assert problem["code"] in ("invalid_request", "invalid_parameters")
    assert problem["errors"][0]["field"].startswith(field)
    assert await stored(api) == (1, 0)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("id_", ["x", "1", "00000000-0000-0000-0000-00000000000g", "🙂"])
async def test_bad_ids_are_refused(api: Service, method: str, id_: str) -> None:
    paths = [f"/contexts/{id_}", f"/results/{id_}", f"/results/{id_}/attempts"]
    if method == "POST":
        paths = [f"/models/send/tiny/{id_}", f"/results/{id_}/cancel"]
    for path in paths:
        check_problem(await api.client.request(method, path), 422, "invalid_request", "UUID")


async def test_unknown_ids_are_404s_that_say_which(api: Service) -> None:
    id_ = str(uuid4())
    for method, path, code in [
        ("GET", f"/contexts/{id_}", "context_not_found"),
        ("GET", f"/results/{id_}", "result_not_found"),
        ("GET", f"/results/{id_}/attempts", "result_not_found"),
        ("POST", f"/results/{id_}/cancel", "result_not_found"),
        ("POST", f"/models/send/tiny/{id_}", "context_not_found"),
    ]:
        check_problem(await api.client.request(method, path), 404, code, id_)


async def test_an_unknown_model_is_a_404_that_names_those_there_are(api: Service) -> None:
    context = await api.context()
    answer = await api.client.post(f"/models/send/tinny/{context}")
    problem = check_problem(answer, 404, "model_not_found", "tinny", "tiny")
    assert problem["models"] == ["lora", "noop", "slow", "tiny"]
    check_problem(await api.client.get("/models/tinny"), 404, "model_not_found")
    assert await stored(api) == (1, 0)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "after=x",
        "created_after=yesterday",
        "created_before=9999-99-99",
        "created_after=0001-01-01T00:00:00%2B14:00",
        "created_after=1e400",
    ],
)
@pytest.mark.parametrize("path", ["/contexts/", "/results/"])
async def test_bad_cursors_and_bounds_are_refused(api: Service, path: str, query: str) -> None:
    problem = check_problem(await api.client.get(f"{path}?{query}"), 422, "invalid_request")
    assert problem["errors"][0]["field"] == query.split("=")[0]


@pytest.mark.parametrize("query", ["status=done", "model=%00", "context_id=x", "client_reference="])
async def test_bad_filters_are_refused(api: Service, query: str) -> None:
    check_problem(await api.client.get(f"/results/?{query}"), 422, "invalid_request", query.split("=")[0])


async def test_extreme_but_valid_times_are_answered(api: Service) -> None:
    for moment in ("0001-01-02T00:00:00Z", "1900-01-01T00:00:00Z", "9999-12-31T00:00:00Z", "0"):
        for name in ("created_after", "created_before"):
            assert (await api.client.get("/results/", params={name: moment})).status_code == 200


async def test_a_number_beyond_a_double_in_a_schema_is_refused(api: Service) -> None:
    context = await api.context()
    body = b'{"parameters": {"structured_outputs": {"json": {"maximum": 1e999}}}}'
    answer = await api.client.post(f"/models/send/tiny/{context}", content=body, headers=JSON)
    check_problem(answer, 422, "invalid_request", "double")


async def test_an_absurd_content_length_is_refused(api: Service) -> None:
    url = api.client.base_url
    for digits in (20, 5000):
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST /contexts/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"0" * digits + b"\r\n\r\n")
        status = await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        assert status.split()[1][:1] == b"4", status


async def test_a_declared_length_over_the_limit_is_refused_before_the_body_comes(api: Service) -> None:
    url = api.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"POST /contexts/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
    status = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    assert status.split()[1] == b"413"


async def test_unknown_paths_and_methods_are_problems_too(api: Service) -> None:
    check_problem(await api.client.get("/contexts"), 404, "not_found", "trailing slash")
    answer = await api.client.put("/contexts/")
    check_problem(answer, 405, "method_not_allowed", "PUT")
    assert answer.headers["allow"] == "GET, HEAD, POST"
