"""/protollm: jobs that are found by their own ids."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.service import Service

META = {"temperature": 0.2, "tokens_limit": 40, "stop_words": None, "model": None}


async def post(service: Service, path: str, job_id: str, **fields: Any) -> httpx.Response:
    meta = META | fields.pop("meta", {})
    return await service.client.post(f"/protollm/{path}", json={"job_id": job_id, "meta": meta} | fields)


async def test_a_prompt_and_a_chat(service: Service) -> None:
    answer = await post(service, "generate", "job-1", content="[[sim:emit=An answer.]]", meta={"stop_words": ["zzz"]})
    assert (answer.status_code, answer.json()) == (200, {"content": "An answer."})
    (ticket,) = (await service.client.get("/results/?client_reference=job-1")).json()
    assert ticket["id"] == answer.headers["x-result-id"]
    sent = ticket["parameters"]
    assert sent | {"temperature": 0.2, "max_tokens": 40, "stop": ["zzz"]} == sent
    messages = [
        {"role": "user", "content": "What is AI?"},
        {"role": "assistant", "content": "Artificial Intelligence is..."},
        {"role": "user", "content": "[[sim:emit=More.]]"},
    ]
    answer = await post(service, "chat_completion", "job-2", messages=messages)
    assert answer.json() == {"content": "More."}


async def test_a_job_sent_again_is_the_same_job(service: Service) -> None:
    again = [post(service, "generate", "job-3", content="Tell me.") for _ in range(4)]
    answers = await asyncio.gather(*again)
    assert len({answer.headers["x-result-id"] for answer in answers}) == 1
    assert len({answer.json()["content"] for answer in answers}) == 1
    other = await post(service, "generate", "job-3", content="Something else.")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert len((await service.client.get("/results/")).json()) == 1
    messages = [{"role": "user", "content": "[[sim:emit=Of the other route.]]"}]
    assert (await post(service, "chat_completion", "job-3", messages=messages)).json() == {
        "content": "Of the other route."
    }


@pytest.mark.parametrize(("priority", "stored"), [(None, 0), (0, 0), (1, 20), (5, 100)])
async def test_priorities(service: Service, priority: int | None, stored: int) -> None:
    answer = await post(service, "generate", "job-4", content="Tell me.", priority=priority)
    assert (await service.result(answer.headers["x-result-id"]))["priority"] == stored


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"content": "x", "priority": 6}, "priority"),
        ({"content": ""}, "content"),
        ({"content": "x", "meta": {"temperature": 9.0}}, "meta.temperature"),
        ({"content": "x", "meta": {"tokens_limit": 0}}, "meta.tokens_limit"),
        ({"content": "x", "meta": {"stop_words": ["y"] * 65}}, "meta.stop_words"),
        ({"content": "x", "job_id": ""}, "job_id"),
    ],
)
async def test_what_is_refused_names_the_field(service: Service, fields: dict[str, Any], field: str) -> None:
    answer = await post(service, "generate", str(fields.pop("job_id", "job-5")), **fields)
    assert answer.status_code == 422
    assert field in [error["field"] for error in answer.json()["errors"]]
    assert (await service.client.get("/results/")).json() == []


async def test_an_error_is_an_error(service: Service) -> None:
    answer = await post(service, "generate", "job-6", content="word " * 20_000)
    assert (answer.status_code, answer.json()["code"]) == (400, "prompt_too_long")
    assert "content" not in answer.json()
    answer = await post(service, "generate", "job-7", content="x", meta={"model": "none"})
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
