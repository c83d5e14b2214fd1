"""An openai engine on a real llama.cpp server."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.engines.base import Credential, Disposition, Endpoint, Engine, EngineError, Request
from app.engines.registry import open_engine
from app.tasks.chunks import Accumulator
from tests.llama import RunningLlama, busy
from tests.service import eventually

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}


@pytest.fixture
async def engine(llama: RunningLlama) -> AsyncIterator[Engine]:
    opened = open_engine(Endpoint("openai", llama.url))
    await opened.models(5.0)
    yield opened
    await opened.close()


def request(prompt: str = "Once upon a time", messages: Any = None, asked: Any = None, **parameters: Any) -> Request:
    chosen = {"max_tokens": 12, "temperature": 0.0} | parameters
    return Request("demo", prompt, chosen, "test", 60.0, 120.0, messages=messages, asked=asked)


async def run(engine: Engine, asked: Request) -> Accumulator:
    made = Accumulator()
    async with aclosing(engine.run(asked)) as chunks:
        async for chunk in chunks:
            made.add(chunk)
    return made


async def test_it_lists_its_model(engine: Engine) -> None:
    (model,) = await engine.models(5.0)
    assert (model.name, model.state) == ("demo", "ready")
    await engine.ping("demo", 20.0)


async def test_a_chat_is_answered(engine: Engine) -> None:
    made = await run(engine, request(messages=QUESTION))
    assert made.joined() == ["The capital of France is Paris."]
    assert made.finish_reasons == ["stop"]
    # As the server counts them, the end of the turn among them.
    assert (made.prompt_tokens, made.completion_tokens) == (16, 8)


async def test_a_prompt_is_continued_as_it_stands(engine: Engine) -> None:
    made = await run(engine, request())
    rendered = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert (await run(engine, request(rendered))).joined() == ["The capital of France is Paris."]
    assert made.joined()[0].startswith(", ")
    assert (made.finish_reasons, made.completion_tokens) == (["length"], 12)


async def test_logprobs_are_those_of_the_tokens(engine: Engine) -> None:
    for messages in (QUESTION, None):
        made = await run(engine, request(messages=messages, logprobs=2, max_tokens=5))
        (tokens,) = made.logprobs
        assert tokens is not None
        chosen = [next(each for each in token.values() if each.get("chosen")) for token in tokens]
        assert "".join(each["decoded_token"] for each in chosen) == made.joined()[0]
        assert all(len(token) == 2 and key.isdecimal() for token in tokens for key in token)
        assert [each["rank"] for each in chosen] == [1] * 5
        assert made.cumulative_logprobs == [pytest.approx(sum(each["logprob"] for each in chosen))]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"choice": ['yes"', "nö"]}, ['yes"', "nö"]),
        ({"json": {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}}, None),
        ({"json_object": True}, None),
    ],
)
async def test_a_text_is_held_to_its_form(engine: Engine, form: Any, expected: list[str] | None) -> None:
    made = await run(engine, request("Is it so?", structured_outputs=form, max_tokens=40))
    if expected:
        assert made.joined()[0] in expected
    else:
        assert made.joined()[0].lstrip().startswith("{")


async def test_what_it_cannot_do_is_refused(engine: Engine) -> None:
    for asked in (
        request(structured_outputs={"regex": "a+"}),
        request(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]),
        Request("demo", '["a text"]', {"task": "embed"}, "test", 20.0, 20.0),
    ):
        with pytest.raises(EngineError) as failed:
            await run(engine, asked)
        assert (failed.value.code, failed.value.disposition) == ("not_supported_by_model", Disposition.FINAL)


async def test_a_prompt_that_is_too_long_is_final(engine: Engine) -> None:
    for messages in ([{"role": "user", "content": "word " * 20_000}], None):
        with pytest.raises(EngineError) as failed:
            await run(engine, request("word " * 20_000, messages))
        assert (failed.value.code, failed.value.disposition) == ("prompt_too_long", Disposition.FINAL)
        assert "8192" in failed.value.message


async def test_tools_are_called_in_the_form_that_the_service_reads(engine: Engine) -> None:
    asked = {"tools": [WEATHER], "tool_choice": "required"}
    call = {"type": "object", "properties": {"name": {"const": "get_weather"}, "arguments": PARAMETERS}}
    schema = {"type": "array", "items": call | {"required": ["name", "arguments"]}, "minItems": 1, "maxItems": 1}
    form = {"json": schema}
    made = await run(engine, request(messages=QUESTION, asked=asked, structured_outputs=form, max_tokens=80))
    assert json.loads(made.joined()[0]) == [{"name": "get_weather", "arguments": {"city": "Paris"}}]


async def test_a_request_that_is_left_stops_the_engine(llama: RunningLlama, engine: Engine) -> None:
    long = request(max_tokens=4000, ignore_eos=True, messages=QUESTION)
    streams = [engine.run(long) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    assert await busy(llama) == 3
    for stream in streams:
        await stream.aclose()

    async def idle() -> bool:
        return await busy(llama) == 0

    await eventually(idle, "the slots are free again", 20)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLlama]:
    log = tmp_path_factory.mktemp("embedder") / "server.log"
    server = RunningLlama(log, "--embeddings", "--slots", "2", "--api-key", "sesame")
    yield server
    server.kill()


class TestServerWithAKey:
    async def test_texts_become_vectors(self, embedder: RunningLlama, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("THEIR_KEY", "sesame")
        engine = open_engine(Endpoint("openai", embedder.url, credential=Credential("env:THEIR_KEY")))
        asked = Request("demo", '["a cat", "a kitten", "the stock market"]', {"task": "embed"}, "test", 60.0, 60.0)
        made = await run(engine, asked)
        await engine.close()
        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in made.joined()]
        assert [vector.shape for vector in vectors] == [(576,)] * 3
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
        assert made.prompt_tokens
        assert made.finished

    async def test_another_key_is_refused_for_good(
        self, embedder: RunningLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "key").write_text("open-seed\n")
        for credential in (None, Credential(f"file:{tmp_path / 'key'}", tmp_path)):
            engine = open_engine(Endpoint("openai", embedder.url, credential=credential))
            for call in (engine.models(5.0), run(engine, request(messages=QUESTION))):
                with pytest.raises(EngineError, match="credential") as failed:
                    await call
                assert failed.value.disposition is Disposition.FINAL
            await engine.close()


async def test_a_server_that_loads_is_waited_for(tmp_path: Path) -> None:
    server = RunningLlama(tmp_path / "log")
    server.kill()
    server.start(wait=False)
    engine = open_engine(Endpoint("openai", server.url))
    said: set[tuple[str, Disposition]] = set()

    async def lists() -> bool:
        try:
            return bool(await engine.models(5.0))
        except EngineError as error:
            said.add((error.code, error.disposition))
            return False

    try:
        await eventually(lists, "it lists its model", 60, pause=0)
        assert said <= {("server_unreachable", Disposition.WAIT), ("server_full", Disposition.WAIT)}
        assert ("server_unreachable", Disposition.WAIT) in said
    finally:
        await engine.close()
        server.kill()
