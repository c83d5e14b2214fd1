"""/api: chats, embeddings and texts with the place in the queue."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from app.config import Settings
from tests.faces.conftest import url_of
from tests.service import Service, eventually, running_api, running_dispatcher


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


async def test_a_chat_with_openais_client(service: Service) -> None:
    asked: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "[[sim:emit=Good morning.]]"}]}
    async with openai.AsyncOpenAI(base_url=f"{url_of(service)}/api", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(**asked)
        assert answer.choices[0].message.content == "Good morning."
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Good morning."


async def test_a_chat_without_a_model_has_the_servers_defaults(service: Service) -> None:
    body = {"messages": [{"role": "user", "content": "Hello."}], "max_new_tokens": 5, "user": None}
    answer = await service.client.post("/api/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    (ticket,) = (await service.client.get("/results/")).json()
    assert ticket["parameters"] | {"temperature": 0.2, "top_p": 0.2, "max_tokens": 5} == ticket["parameters"]
    answer = await service.client.post("/api/chat/completions", json=body | {"max_tokens": 6})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "max_new_tokens")
    answer = await service.client.post("/api/chat/completions", json=body | {"nonsense": 6})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "nonsense")


async def test_embeddings(service: Service) -> None:
    answer = await service.client.post("/api/embeddings", json={"input": ["one", "two"], "model": "embed"})
    assert answer.status_code == 200, answer.text
    assert [each["index"] for each in answer.json()["data"]] == [0, 1]
    assert len(answer.json()["data"][0]["embedding"]) > 1


async def test_a_text(service: Service) -> None:
    answer = await service.client.post("/api/generate", json={"prompt": "[[sim:emit=Hi.]]", "temperature": 0.5})
    *before, last = events_of(answer.text)
    assert {event["status"] for event in before} <= {"waiting", "processing"}
    assert last["usage"].pop("total_tokens") > 0
    assert last | {
        "status": "complete", "message": "Generation complete.", "output": "Hi.", "input": "[[sim:emit=Hi.]]",
        "model": "chat",
    } == last  # fmt: skip
    assert (await service.result(answer.headers["x-result-id"]))["parameters"]["temperature"] == 0.5


async def test_the_position_is_told_while_it_waits(api: Service) -> None:
    """Nothing runs until the dispatcher starts."""
    ahead = [await api.client.post("/contexts/", json={"content": "x"}) for _ in range(2)]
    for context in ahead:
        await api.client.post(f"/models/send/chat/{context.json()['id']}", json={"priority": 5})
    told: list[dict[str, Any]] = []
    async with api.client.stream("POST", "/api/generate", json={"prompt": "[[sim:emit=Hi.]]"}) as stream:
        lines = stream.aiter_lines()
        async for line in lines:
            if line.startswith("data: "):
                told.append(json.loads(line.removeprefix("data: ")))
                break
        assert told == [{"status": "waiting", "message": "Your position in the queue is: 3"}]
        sizes = eventually(lambda: _sizes(api, 3), "the queue's size is read anew")
        await sizes
        async with running_dispatcher(api.settings):
            async for line in lines:
                if line.startswith("data: "):
                    told.append(json.loads(line.removeprefix("data: ")))
    assert told[-1]["output"] == "Hi."


async def _sizes(api: Service, count: int) -> bool:
    answer = await api.client.get("/api/queue")
    assert answer.headers["content-type"].startswith("text/plain")
    status = (await api.client.get("/api/status")).json()
    assert (status["model"], status["type"]) == ("chat", "text")
    return answer.text == f"queue_size {count}" and status["queue"] == count


async def test_an_error_is_a_status_or_an_event(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = await service.client.post("/api/generate", json={"prompt": "x", "temperature": 9.0})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "temperature")
    answer = await service.client.post("/api/generate", json={"prompt": "word " * 20_000})
    last = events_of(answer.text)[-1]
    assert (last["status"], last["code"]) == ("error", "prompt_too_long")
    waits = asyncio.create_task(service.client.post("/api/generate", json={"prompt": "[[sim:slow=60]] x"}))

    async def cancelled() -> bool:
        tickets = (await service.client.get("/results/?status=pending")).json()
        for ticket in tickets:
            await service.client.post(f"/results/{ticket['id']}/cancel")
        return bool(tickets)

    await eventually(cancelled, "the ticket is cancelled")
    last = events_of((await waits).text)[-1]
    assert (last["status"], last["code"]) == ("cancelled", "cancelled")


async def test_health_and_state(service: Service, make_settings: Callable[..., Settings]) -> None:
    assert (await service.client.get("/api/health")).json() == {"status": "ok"}

    async def loaded() -> bool:
        return bool((await service.client.get("/api/model-loaded")).json() is True)

    await eventually(loaded, "the model is ready")
    assert (await service.client.get("/api/status")).json()["status"] == "READY"
    async with running_api(make_settings(default_model="none")) as other:
        assert (await other.client.get("/api/model-loaded")).json() is False


async def test_many_wait_at_once(service: Service) -> None:
    answers = await asyncio.gather(
        *(service.client.post("/api/generate", json={"prompt": f"[[sim:emit={number}]]"}) for number in range(12))
    )
    assert [events_of(answer.text)[-1]["output"] for answer in answers] == [str(number) for number in range(12)]
