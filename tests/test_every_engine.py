"""One stack with every engine that runs here, and servers that come and go under its load."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.config import Settings
from tests.comparisons.follower import ComparisonFollower
from tests.engines.gradio.conftest import RunningApp
from tests.fleet.test_server_rows import added, changed
from tests.infer.kit import file_of, inferred, outputs, tensor
from tests.llama import RunningLlama
from tests.servers import RunningTriton, start_demo
from tests.service import Service, eventually, running_api, running_dispatcher

PARAMETERS = {"max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_demo(tmp_path_factory.mktemp("triton"), "minilm", "image-rules")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def gradio_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    app = RunningApp(tmp_path_factory.mktemp("gradio") / "app.log")
    yield app
    app.kill()


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with running_api(settings) as running, running_dispatcher(settings):
        yield running


async def ready(running: Service, models: set[str]) -> None:
    async def are() -> bool:
        listed = (await running.client.get("/models/")).json()
        return models <= {each["name"] for each in listed if each["state"] == "ready"}

    await eventually(are, f"{models} are ready")


async def embedded(running: Service) -> int:
    answer = await running.client.post("/v1/embeddings", json={"model": "minilm", "input": "a cat"})
    assert answer.status_code == 200, answer.text
    return len(answer.json()["data"][0]["embedding"])


async def drawn(running: Service) -> bytes:
    result = await inferred(running, "image-rules", tensor("prompt", "BYTES", "a red sunset"))
    return (await file_of(running, outputs(result)["image"])).content


async def compared(running: Service, *models: str) -> ComparisonFollower:
    body = {
        "messages": [{"role": "user", "content": "Say hello."}],
        "parameters": {"max_tokens": 8},
        "stream": True,
        "entries": [{"model": model} for model in models],
    }
    answer = await running.client.post("/comparisons/", json=body)
    assert answer.status_code == 202, answer.text
    return await ComparisonFollower(answer.json()["id"]).follow(running)


async def test_one_stack_serves_all_kinds_at_once(
    make_settings: Callable[..., Settings], llama: RunningLlama, gradio_app: RunningApp
) -> None:
    async with service(make_settings()) as running:
        await added(running, llama.url, kind="openai", models={"demo": "llama"})
        await added(running, gradio_app.url, kind="gradio", models={"count": "counter"}, concurrency=2)
        await ready(running, {"demo", "minilm", "image-rules", "llama", "counter"})
        comparison, size, picture, *results = await asyncio.gather(
            compared(running, "demo", "llama", "counter"),
            embedded(running),
            drawn(running),
            *(running.run(model=model, **PARAMETERS) for model in ("demo", "llama")),
        )
        assert size == 384
        assert picture.startswith(b"\x89PNG")
        assert [(result["status"], result["usage"]["completion_tokens"]) for result in results] == [
            ("completed", 8)
        ] * 2
        comparison.check()
        answers = {result["model"]: result for result in comparison.results.values()}
        assert {model: result["provenance"]["kind"] for model, result in answers.items()} == {
            "demo": "triton",
            "llama": "openai",
            "counter": "gradio",
        }
        assert answers["counter"]["output"].startswith("Say hello.0 Say hello.1 ")
        assert comparison.texts.keys() == comparison.results.keys()


async def test_a_server_comes_and_goes_under_load_and_no_ticket_is_lost(
    make_settings: Callable[..., Settings], llama: RunningLlama
) -> None:
    """Another kind of server has the model for a while; every accepted ticket is completed once, in one attempt."""
    async with service(make_settings(model_concurrency=2)) as running:
        await ready(running, {"demo"})
        context = await running.context("Once upon a time")
        ids: list[str] = []
        ending = asyncio.Event()

        async def load() -> None:
            while not ending.is_set():
                ids.append(await running.send(context, "demo", parameters=PARAMETERS))
                await running.result(ids[-1], wait=5)

        users = [asyncio.create_task(load()) for _ in range(6)]
        other = await added(running, llama.url, kind="openai", name="other")

        async def now() -> dict[str, Any]:
            found: dict[str, Any] = (await running.client.get(f"/servers/{other['id']}")).json()
            return found

        async def used() -> bool:
            return bool((await now())["attempts"] >= 6)

        async def drained() -> bool:
            return bool((await now())["state"] == "drained")

        await eventually(used, "it gets tickets")
        await changed(running, other["id"], wanted="draining")
        await eventually(drained, "what it had is finished")
        sent = len(ids)
        assert (await running.client.delete(f"/servers/{other['id']}")).status_code == 204

        async def going_on() -> bool:
            return len(ids) >= sent + 12

        await eventually(going_on, "the first server works on")
        ending.set()
        await asyncio.gather(*users)
        results = [await running.settled(id_) for id_ in ids]
        assert Counter(result["status"] for result in results) == {"completed": len(ids)}
        assert {result["usage"]["completion_tokens"] for result in results} == {8}
        ledger = [await running.attempts(id_) for id_ in ids]
        assert [[attempt["outcome"] for attempt in attempts] for attempts in ledger] == [["completed"]] * len(ids)
        assert {attempts[0]["server"] for attempts in ledger} == {llama.url, *running.settings.triton_urls}
