"""A gradio engine on a real Gradio app."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config import Settings
from app.engines.base import Credential, Disposition, Endpoint, Engine, EngineError, Request
from app.engines.registry import open_engine
from app.tasks.chunks import Accumulator, Chunk
from tests.engines.gradio.conftest import RunningApp
from tests.service import eventually, running_api, running_dispatcher

TURNS = [
    {"role": "system", "content": "Be short"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": [{"type": "text", "text": "three"}]},
]


@pytest.fixture
async def engine(gradio_app: RunningApp) -> AsyncIterator[Engine]:
    opened = open_engine(Endpoint("gradio", gradio_app.url))
    yield opened
    await opened.close()


def request(model: str, prompt: str = "hi", messages: Any = None, asked: Any = None, **parameters: Any) -> Request:
    return Request(model, prompt, parameters, "test", 60.0, 120.0, messages=messages, asked=asked)


async def chunks_of(engine: Engine, asked: Request) -> list[Chunk]:
    async with aclosing(engine.run(asked)) as chunks:
        return [chunk async for chunk in chunks]


async def run(engine: Engine, model: str, prompt: str = "hi", **more: Any) -> str:
    made = Accumulator()
    for chunk in await chunks_of(engine, request(model, prompt, **more)):
        made.add(chunk)
    assert made.finish_reasons == ["stop"]
    return made.joined()[0]


async def fault(engine: Engine, model: str, prompt: str = "hi", **more: Any) -> EngineError:
    with pytest.raises(EngineError) as failed:
        await run(engine, model, prompt, **more)
    return failed.value


async def busy(app: RunningApp) -> int:
    """How many calls of `count` and `sleep` the app works on."""
    async with httpx.AsyncClient(trust_env=False, base_url=f"{app.url}/gradio_api") as http:
        event = (await http.post("/call/busy", json={"data": []})).raise_for_status().json()["event_id"]
        answer = (await http.get(f"/call/busy/{event}")).text
    return int(json.loads(answer.rsplit("data: ", 1)[1])[0])


async def test_its_models_are_the_endpoints_that_take_a_text_alone(engine: Engine) -> None:
    names = [model.name for model in await engine.models(20.0)]
    assert names == ["shout", "count", "sleep", "rewrite", "refuse", "crash", "submit_nochat_api", "chat"]
    assert [model.name for model in await engine.models(20.0)] == names
    await engine.ping("shout", 20.0)


async def test_a_text_is_answered_with_a_text(engine: Engine) -> None:
    (chunk,) = await chunks_of(engine, request("shout", 'don\'t\n"shout" ü'))
    assert (chunk.texts, chunk.final) == (['DON\'T\n"SHOUT" Ü'], True)
    assert (chunk.prompt_tokens, chunk.completion_tokens) == (4, [4])


async def test_what_an_endpoint_generates_is_streamed(engine: Engine) -> None:
    chunks = await chunks_of(engine, request("count", "a", max_tokens=3, temperature=0.1, top_k=7))
    assert [text for chunk in chunks for text in chunk.texts] == ["a0 ", "a1 ", "a2 ", ""]
    assert [chunk.final for chunk in chunks] == [False, False, False, True]
    # Without it, its own default holds.
    assert await run(engine, "count", "a") == "a0 a1 a2 a3 a4 "


async def test_a_chat_goes_to_a_chat_interface(engine: Engine) -> None:
    assert await run(engine, "chat", messages=TURNS[1:2], max_tokens=4) == "Be kind: one (4)"
    said = await run(engine, "chat", messages=TURNS)
    assert said == "Be short: User: one\n\nAssistant: two\n\nUser: three (9)"
    # Without a field of its own, what the system says comes first.
    assert await run(engine, "shout", messages=[TURNS[0], TURNS[1]]) == "BE SHORT\n\nONE"


async def test_h2ogpt_is_told_in_its_own_words(engine: Engine) -> None:
    said = await run(engine, "submit_nochat_api", "it's", temperature=0.0, max_tokens=9, seed=3)
    assert said == "You said " + str(
        {
            "instruction_nochat": "it's",
            "stream_output": True,
            "max_new_tokens": 9,
            "temperature": 0.0,
            "seed": 3,
            "do_sample": False,
        }
    )
    said = await run(engine, "submit_nochat_api", messages=TURNS)
    assert "'instruction_nochat': 'three'" in said
    assert "'system_prompt': 'Be short', 'chat_conversation': [('one', 'two')]" in said
    error = await fault(engine, "submit_nochat_api", "fail")
    assert (error.code, error.disposition) == ("engine_error", Disposition.RETRY)
    assert "no model is loaded" in error.message


async def test_an_app_that_takes_back_what_it_said_is_taken_when_it_is_done(engine: Engine) -> None:
    error = await fault(engine, "rewrite", "done")
    assert (error.code, error.disposition) == ("answer_rewritten", Disposition.RETRY)
    assert await run(engine, "rewrite", "done") == "done"


@pytest.mark.parametrize(
    ("model", "words"), [("refuse", "the model is away: hi."), ("crash", "it shows the reason only with show_error")]
)
async def test_an_error_of_the_app_is_tried_again(engine: Engine, model: str, words: str) -> None:
    error = await fault(engine, model)
    assert (error.code, error.disposition) == ("engine_error", Disposition.RETRY)
    assert words in error.message
    assert "/srv" not in error.message + error.raw


@pytest.mark.parametrize(
    "more",
    [
        {"structured_outputs": {"json_object": True}},
        {"logprobs": 2},
        {"messages": TURNS, "asked": {"tools": [{"type": "function"}]}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        {"messages": [*TURNS, {"role": "tool", "content": "4"}]},
        {"messages": TURNS[:3]},
    ],
)
async def test_what_no_app_can_be_told_is_final(engine: Engine, more: dict[str, Any]) -> None:
    error = await fault(engine, "chat", **more)
    assert (error.code, error.disposition) == ("not_supported_by_model", Disposition.FINAL)


async def test_an_endpoint_that_is_not_there_is_final(engine: Engine) -> None:
    error = await fault(engine, "join")
    assert (error.code, error.disposition) == ("model_unavailable", Disposition.FINAL)


@pytest.mark.parametrize(("model", "tokens"), [("sleep", 1), ("count", 100_000)])
async def test_a_cancel_stops_the_function(engine: Engine, gradio_app: RunningApp, model: str, tokens: int) -> None:
    task = asyncio.create_task(run(engine, model, max_tokens=tokens))

    async def works() -> bool:
        return await busy(gradio_app) == 1

    async def rests() -> bool:
        return await busy(gradio_app) == 0

    await eventually(works, "the function runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(rests, "the function is stopped")


async def test_a_full_queue_waits_and_a_cancel_makes_room(engine: Engine, gradio_app: RunningApp) -> None:
    tasks = [asyncio.create_task(run(engine, "sleep"))]

    async def works() -> bool:
        return await busy(gradio_app) == len(tasks)

    # Two at once, and two in its queue.
    await eventually(works, "the first runs")
    tasks.append(asyncio.create_task(run(engine, "sleep")))
    await eventually(works, "the second runs")
    tasks += [asyncio.create_task(run(engine, "sleep")) for _ in range(2)]

    async def waiting() -> int:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"{gradio_app.url}/gradio_api/queue/status")
        return int(answer.raise_for_status().json()["queue_size"])

    async def full() -> bool:
        return await waiting() == 2

    await eventually(full, "the queue is full")
    error = await fault(engine, "shout")
    assert (error.code, error.disposition, error.retry_after) == ("server_full", Disposition.WAIT, 2.0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    async def room() -> bool:
        return await waiting() == 0

    await eventually(room, "the queue has room")
    assert await run(engine, "shout") == "HI"


async def test_an_app_with_a_login(gradio_app: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(Endpoint("gradio", gradio_app.login_url, credential=Credential("env:APP_LOGIN")))
    for credential in ("ann:wrong", "a-token"):
        monkeypatch.setenv("APP_LOGIN", credential)
        with pytest.raises(EngineError, match=r"refuses this service's credential \(401\)") as refused:
            await engine.models(20.0)
        assert refused.value.disposition is Disposition.FINAL
    monkeypatch.setenv("APP_LOGIN", "ann:pass:word")
    assert "shout" in [model.name for model in await engine.models(20.0)]
    assert await run(engine, "shout") == "HI"
    await engine.close()


async def test_a_ticket_is_answered(
    gradio_app: RunningApp, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    file = tmp_path / "servers.json"
    entry = {"kind": "gradio", "url": gradio_app.url, "models": {"chat": "assistant", "sleep": "slow"}}
    file.write_text(json.dumps({"servers": [entry]}))
    settings = make_settings(triton_urls=(), triton_servers_file=file)
    async with running_api(settings) as service, running_dispatcher(settings):

        async def there() -> bool:
            return (await service.client.get("/models/assistant")).is_success

        await eventually(there, "the model is known")
        result = await service.run("hello", model="assistant", max_tokens=7)
        assert (result["status"], result["output"]) == ("completed", "Be kind: hello (7)")
        body = {"model": "assistant", "messages": [{"role": "user", "content": "you"}], "max_tokens": 3}
        chat = (await service.client.post("/v1/chat/completions", json=body)).raise_for_status().json()
        assert chat["choices"][0]["message"]["content"] == "Be kind: you (3)"


async def test_an_app_that_dies_and_comes_back(gradio_app: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_LOGIN", "ann:pass:word")
    engine = open_engine(Endpoint("gradio", gradio_app.login_url, credential=Credential("env:APP_LOGIN")))
    await engine.models(20.0)
    chunks = engine.run(request("count", max_tokens=100_000))
    await anext(chunks)
    gradio_app.kill()
    with pytest.raises(EngineError) as died:
        async for _ in chunks:
            pass
    assert (died.value.code, died.value.disposition) == ("server_died", Disposition.RETRY)
    error = await fault(engine, "shout")
    assert (error.code, error.disposition) == ("server_unreachable", Disposition.WAIT)
    with pytest.raises(EngineError):
        await engine.models(5.0)
    # It has forgotten who logged in.
    gradio_app.start()
    assert await run(engine, "shout") == "HI"
    assert "shout" in [model.name for model in await engine.models(20.0)]
    await engine.close()
