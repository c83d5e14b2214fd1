"""What a tgi engine sends, and what it makes of servers that refuse, cut, stall and lie."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.engines.base import Credential, Disposition, Endpoint, EngineError, Request, Timeouts
from app.engines.registry import open_engine
from app.engines.tgi_wire import generate_body
from app.tasks.chunks import Accumulator
from tests.engines import asking
from tests.faulty_http import Asked, Behaviour, always, answer, endless, event, faulty_server, head, then_silence
from tests.service import eventually

INFO = {"model_id": "org/some-model", "version": "3.3.4"}


def request(**parameters: Any) -> Request:
    return Request("org/some-model", "hi", {"max_tokens": 16, **parameters}, "test", 5.0, 30.0)


def token(text: str, id_: int = 5, **fields: Any) -> bytes:
    one = {"id": id_, "text": text, "logprob": -0.5, "special": False} | fields
    return event({"index": 1, "token": one, "generated_text": None, "details": None})


def end(text: str, last: str = "", reason: str = "eos_token", **fields: Any) -> bytes:
    one = {"id": 2, "text": last or "</s>", "logprob": -0.1, "special": not last} | fields
    details = {"finish_reason": reason, "generated_tokens": 3, "seed": None, "input_length": 4}
    return event({"index": 9, "token": one, "generated_text": text, "details": details})


async def run(endpoint: Endpoint | str, asked: Request | None = None) -> Accumulator:
    at = endpoint if isinstance(endpoint, Endpoint) else Endpoint("tgi", endpoint)
    return await asking.run(at, asked or request())


async def said(*parts: bytes, **parameters: Any) -> Accumulator:
    async with faulty_server(always(head(), *parts)) as server:
        return await run(server.url, request(**parameters))


async def fault(behaviour: Behaviour, asked: Request | None = None, **endpoint: Any) -> EngineError:
    return await asking.fault("tgi", behaviour, asked or request(), **endpoint)


def body(**parameters: Any) -> dict[str, Any]:
    """What is sent, but for what always is."""
    asked = generate_body(request(**parameters))["parameters"]
    assert (asked.pop("details"), asked.pop("max_new_tokens")) == (True, 16)
    return dict(asked)


def test_parameters_have_tgis_names() -> None:
    given = {"top_k": 20, "repetition_penalty": 1.1, "frequency_penalty": 0.5, "seed": 3}
    asked = body(temperature=0.7, top_p=0.9, stop="END", lora_name="law", logprobs=4, **given)
    assert asked == given | {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "stop": ["END"],
        "adapter_id": "law",
        "top_n_tokens": 4,
    }


def test_what_changes_nothing_is_not_sent_for_tgi_refuses_it() -> None:
    assert body(temperature=0.0, top_p=0.5) == {"do_sample": False}
    assert body(temperature=1.0, top_p=1.0, top_k=-1, logprobs=0) == {"do_sample": True, "temperature": 1.0}
    harmless = {"min_p": 0.0, "presence_penalty": 0.0, "min_tokens": 0, "ignore_eos": False, "bad_words": []}
    assert body(temperature=0.0, **harmless) == {"do_sample": False}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"min_p": 0.1}, "has no min_p"),
        ({"presence_penalty": 1.0}, "has no presence_penalty"),
        ({"min_tokens": 3}, "has no min_tokens"),
        ({"ignore_eos": True}, "has no ignore_eos"),
        ({"stop_token_ids": [2]}, "has no stop_token_ids"),
        ({"bad_words": ["x"]}, "has no bad_words"),
        ({"allowed_token_ids": [1]}, "has no allowed_token_ids"),
        ({"skip_special_tokens": False}, "has no skip_special_tokens"),
        ({"seed": -5}, "seed below 0"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "takes no structured_outputs.grammar"),
    ],
)
async def test_what_tgi_does_not_know_is_refused_by_name(parameters: dict[str, Any], words: str) -> None:
    async with faulty_server(always()) as server:
        with pytest.raises(EngineError, match=words) as failed:
            await run(server.url, request(**parameters))
        assert server.asked == []
    assert (failed.value.code, failed.value.disposition) == ("not_supported_by_model", Disposition.FINAL)


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"json": {"type": "string"}}, {"type": "json", "value": {"type": "string"}}),
        ({"json_object": True}, {"type": "json", "value": {"type": "object"}}),
        ({"regex": "[ab]+"}, {"type": "regex", "value": "[ab]+"}),
        ({"choice": ["yes", "a.b"]}, {"type": "regex", "value": "yes|a\\.b"}),
    ],
)
def test_a_form_is_a_grammar(form: dict[str, Any], grammar: dict[str, Any]) -> None:
    assert body(structured_outputs=form)["grammar"] == grammar


async def test_tokens_become_a_text() -> None:
    made = await said(token("Good"), token(" day", 6), end("Good day"))
    assert (made.joined(), made.finish_reasons) == (["Good day"], ["stop"])
    assert (made.prompt_tokens, made.completion_tokens, made.logprobs) == (4, 3, [None])
    # The last token of a text that was cut is part of it.
    made = await said(token("Good"), end("Good day", " day", "length"))
    assert (made.joined(), made.finish_reasons) == (["Good day"], ["length"])
    # What only the whole text has.
    made = await said(token("Good"), token(""), end("Good d\u00e4y"))
    assert made.joined() == ["Good d\u00e4y"]


async def test_logprobs_have_the_ids_of_the_tokens() -> None:
    one = {"id": 5, "text": "Good", "logprob": -0.5, "special": False}
    other = {"id": 8, "text": "Bad", "logprob": -1.5, "special": False}
    first = event({"index": 1, "token": one, "top_tokens": [one, other], "generated_text": None, "details": None})
    made = await said(first, end("Good"), logprobs=2)
    assert made.logprobs == [
        [
            {
                "5": {"logprob": -0.5, "decoded_token": "Good", "chosen": True, "rank": 1},
                "8": {"logprob": -1.5, "decoded_token": "Bad", "rank": 2},
            }
        ]
    ]
    assert made.cumulative_logprobs == [-0.5]


async def test_a_text_that_ends_the_generation_is_cut_off() -> None:
    tokens = [token("one "), token("E"), token("two "), token("EN"), end("one Etwo END", "D", "stop_sequence")]
    made = await said(*tokens, stop=["END", "zzz"])
    assert (made.joined(), made.finish_reasons, made.completion_tokens) == (["one Etwo "], ["stop"], 3)
    made = await said(*tokens, stop=["END", "zzz"], include_stop_str_in_output=True)
    assert made.joined() == ["one Etwo END"]
    # What was held back because it might have been the beginning of one.
    made = await said(token("one E"), token("N"), end("one EN"), stop="END")
    assert made.joined() == ["one EN"]


async def test_a_server_that_goes_on_beyond_a_stop_is_left() -> None:
    """TGI ends only where a token ends with the text."""
    async with faulty_server(then_silence(head(), token("one"), token(" END."), token("two"))) as server:
        made = await run(server.url, request(stop="END"))
        assert (made.joined(), made.finish_reasons) == (["one "], ["stop"])

        async def left() -> bool:
            return server.left == 1

        await eventually(left, "the connection is closed")


VALIDATION = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens"


@pytest.mark.parametrize(
    ("status", "kind", "text", "code", "disposition"),
    [
        (422, "validation", "Input validation error: `top_p` must be > 0.0", "invalid_parameters", "final"),
        (422, "validation", VALIDATION, "prompt_too_long", "final"),
        (422, "validation", "`inputs` must have less than 1024 tokens. Given: 2000", "prompt_too_long", "final"),
        (429, "overloaded", "Model is overloaded", "server_full", "wait"),
        (503, "healthcheck", "unhealthy", "server_full", "wait"),
        (424, "generation", "Request failed during generation: CUDA out of memory", "engine_error", "retry"),
        (500, "incomplete_generation", "Incomplete generation", "stream_ended", "retry"),
        (500, "incomplete_generation_stream", "Incomplete generation stream", "stream_ended", "retry"),
        (401, "", "no", "server_refused", "final"),
    ],
)
async def test_an_error_means_the_same_as_a_status_and_within_a_stream(
    status: int, kind: str, text: str, code: str, disposition: str
) -> None:
    error = await fault(always(answer(status, json.dumps({"error": text, "error_type": kind}))))
    assert (error.code, error.disposition.value) == (code, disposition)
    if kind:
        error = await fault(always(head(), token("a"), event({"error": text, "error_type": kind})))
        assert (error.code, error.disposition.value) == (code, disposition)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([head(), token("a")], "stream_ended"),
        ([head(), token("a"), b'data:{"tok'], "stream_ended"),
        ([head(), b"data:{no json\n\n"], "server_error"),
        ([head(), event([1])], "server_error"),
        ([head(), event({"token": 7})], "server_error"),
        ([head(), event({"token": {"text": 7}})], "server_error"),
        ([head(), event({"token": {"text": "a", "logprob": "x", "id": 3}})], "server_error"),
        ([head(), event({"token": {"text": "a", "id": 3}, "top_tokens": {"a": 1}})], "server_error"),
        ([head(), event({"error": {"deep": 1}})], "engine_error"),
        ([answer(200, "[]")], "server_error"),
        ([], "server_died"),
    ],
)
async def test_a_broken_answer_is_tried_again(parts: list[bytes], code: str) -> None:
    error = await fault(always(*parts), request(logprobs=1))
    assert (error.code, error.disposition) == (code, Disposition.RETRY)


async def test_a_server_that_lies_or_stalls_is_left() -> None:
    error = await fault(endless(head(), token("a") * 100))
    assert (error.code, error.disposition) == ("server_error", Disposition.RETRY)
    error = await fault(then_silence(head(), token("a")), timeouts=Timeouts(first_token=9, between_tokens=0.4))
    assert (error.code, error.disposition) == ("idle_timeout", Disposition.RETRY)
    counts = {"finish_reason": "length", "generated_tokens": 10**12, "input_length": -1}
    last = event({"token": {"id": 1, "text": "a", "logprob": 0}, "generated_text": "a", "details": counts})
    made = await said(last)
    assert (made.completion_tokens, made.prompt_tokens) == (1, None)


async def test_closing_the_iterator_closes_the_connection() -> None:
    async with faulty_server(then_silence(head(), token("a"))) as server:
        engine = open_engine(Endpoint("tgi", server.url))
        chunks = engine.run(request())
        assert (await anext(chunks)).texts == ["a"]
        await chunks.aclose()

        async def left() -> bool:
            return server.left == 1

        await eventually(left, "the connection is closed")
        await engine.close()


def tgi(health: bytes = answer(200)) -> Behaviour:
    async def behaviour(asked: Asked) -> AsyncIterator[bytes]:
        yield answer(200, json.dumps(INFO)) if asked.path == "/info" else health

    return behaviour


async def models(url: str, credential: Credential | None = None) -> list[tuple[str, str]]:
    engine = open_engine(Endpoint("tgi", url, credential=credential))
    try:
        return [(model.name, model.state) for model in await engine.models(5.0)]
    finally:
        await engine.close()


async def test_the_model_is_what_info_names_while_health_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", "sesame")
    (tmp_path / "login").write_text("alice:open-seed\n")
    async with faulty_server(tgi()) as server:
        assert await models(server.url) == [("org/some-model", "ready")]
        assert [asked.path for asked in server.asked] == ["/info", "/health"]
        assert "authorization" not in server.asked[0].headers
        await models(server.url, Credential("env:THEIR_KEY"))
        assert {asked.headers.get("authorization") for asked in server.asked[2:]} == {"Bearer sesame"}
        await models(server.url, Credential("file:login", tmp_path))
        assert {asked.headers.get("authorization") for asked in server.asked[4:]} == {"Basic YWxpY2U6b3Blbi1zZWVk"}
    async with faulty_server(tgi(answer(503, '{"error":"unhealthy","error_type":"healthcheck"}'))) as server:
        with pytest.raises(EngineError, match="not healthy"):
            await models(server.url)
    for wrong in ("[]", "{}", '{"model_id": ""}'):
        async with faulty_server(always(answer(200, wrong))) as server:
            with pytest.raises(EngineError, match="no description of a TGI server"):
                await models(server.url)


async def test_a_ping_is_one_token_whole() -> None:
    async with faulty_server(always(answer(200, '{"generated_text": "a"}'))) as server:
        engine = open_engine(Endpoint("tgi", server.url))
        async with asyncio.timeout(20):
            await engine.ping("org/some-model", 5.0)
        await engine.close()
        (asked,) = server.asked
        assert (asked.path, asked.json["parameters"]["max_new_tokens"]) == ("/generate", 1)
