"""What an openai engine makes of servers that refuse, cut, stall, lie and flood."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from app.engines.base import Credential, Disposition, Endpoint, EngineError, Request, Timeouts
from app.engines.openai_http import OpenAIEngine
from app.engines.registry import open_engine
from app.tasks.chunks import Accumulator
from tests.engines import asking
from tests.faulty_http import (
    END,
    Asked,
    Behaviour,
    FaultyServer,
    always,
    answer,
    endless,
    event,
    faulty_server,
    finish,
    head,
    text,
    then_silence,
)

CHAT = [{"role": "user", "content": "hi"}]


def request(messages: list[Any] | None = CHAT, **parameters: Any) -> Request:
    return Request("m", "hi", {"max_tokens": 16, **parameters}, "test", 5.0, 30.0, messages=messages)


async def run(endpoint: Endpoint | str, asked: Request | None = None) -> Accumulator:
    at = endpoint if isinstance(endpoint, Endpoint) else Endpoint("openai", endpoint)
    return await asking.run(at, asked or request())


async def fault(behaviour: Behaviour, asked: Request | None = None, **endpoint: Any) -> EngineError:
    return await asking.fault("openai", behaviour, asked or request(), **endpoint)


@pytest.mark.parametrize(
    ("status", "body", "code", "disposition", "words"),
    [
        (
            401,
            '{"error":{"message":"bad key sk-12"}}',
            "server_refused",
            "final",
            "credential (401). The administrator",
        ),
        (403, "", "server_refused", "final", "credential (403). The administrator"),
        (402, "", "server_refused", "final", "payment"),
        (404, '{"error":{"message":"no such model"}}', "model_unavailable", "final", "does not have this model"),
        (400, '{"error":{"message":"top_p must be below 1"}}', "invalid_parameters", "final", "top_p must be below 1."),
        (422, '{"detail":"tools: wrong"}', "invalid_parameters", "final", "tools: wrong."),
        (
            400,
            '{"error":{"message":"This model\'s maximum context length is 256 tokens."}}',
            "prompt_too_long",
            "final",
            "maximum context length is 256 tokens",
        ),
        (413, "", "message_too_large", "final", "larger than the server takes"),
        (501, '{"error":{"message":"no embeddings here"}}', "not_supported_by_model", "final", "no embeddings here."),
        (307, "", "server_refused", "final", "redirects"),
        (429, '{"error":{"message":"slow down"}}', "server_full", "wait", "limits how often"),
        (503, '{"error":{"message":"Loading model"}}', "server_full", "wait", "overloaded"),
        (500, '{"error":{"message":"CUDA: out of memory"}}', "engine_error", "retry", "CUDA: out of memory."),
        (500, "Traceback\n  File /srv/x.py", "engine_error", "retry", "Traceback."),
        (502, "<html><b>Bad Gateway</b></html>", "server_error", "retry", "The server failed (502)."),
        (504, "", "server_error", "retry", "The server failed (504)."),
    ],
)
async def test_a_status_means(status: int, body: str, code: str, disposition: str, words: str) -> None:
    error = await fault(always(answer(status, body)))
    assert (error.code, error.disposition.value) == (code, disposition)
    assert words in error.message
    assert "html" not in error.message
    assert "sk-12" not in error.message


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("86400", 600.0),
        ("soon", 2.0),
        ("nan", 2.0),
        ("-3", 2.0),
        ("Sun, 99 Foo 2026 00:00:00 GMT", 2.0),
    ],
)
async def test_retry_after_is_kept_within_reason(given: str, seconds: float) -> None:
    error = await fault(always(answer(429, "", Retry_After=given)))
    assert error.retry_after == seconds


async def test_retry_after_may_be_a_date() -> None:
    error = await fault(always(answer(503, "", Retry_After=formatdate(time.time() + 100, usegmt=True))))
    assert error.retry_after is not None
    assert 50 < error.retry_after <= 100


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([], "server_died"),
        ([b"HTTP/1.1 200 OK\r\nContent-Le"], "server_died"),
        ([head(), text("a"), b'data: {"choi'], "stream_ended"),
        ([head(), text("a")], "stream_ended"),
        ([head(), text("a"), END], "stream_ended"),
        (
            [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 900\r\n\r\n", text("a")],
            "server_died",
        ),
        ([head(), b"data: {not json\n\n"], "server_error"),
        ([head(), b"data: [1]\n\n"], "server_error"),
        ([head(), event({"choices": "none"})], "server_error"),
        ([head(), event({"choices": [7]})], "server_error"),
        ([head(), event({"choices": [{"delta": {"content": 7}}]})], "server_error"),
        ([head(), event({"choices": [{"delta": {"tool_calls": [{"index": -1, "function": {}}]}}]})], "server_error"),
        ([head(), b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n'], "server_error"),
        ([head(), b"data: " + b"[" * 100_000 + b"\n\n"], "server_error"),
        ([answer(200, "<html>welcome</html>", "text/html")], "stream_ended"),
        ([answer(200, "nothing of the kind")], "server_error"),
        ([b"\x16\x03\x01 this is no HTTP\r\n\r\n"], "server_error"),
        ([head(), text("a"), event({"error": {"message": "CUDA error", "code": 500}})], "engine_error"),
        ([head(), event({"error": "it fell over"})], "engine_error"),
        ([head(), event({"error": {"message": "overloaded, try again", "type": "x"}})], "server_full"),
        ([b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: text/event-stream\r\n\r\n"], "server_error"),
    ],
)
async def test_a_broken_answer_is_tried_again(parts: list[bytes], code: str) -> None:
    error = await fault(always(*parts))
    assert error.code == code
    assert error.disposition is (Disposition.WAIT if code == "server_full" else Disposition.RETRY)


async def test_a_prompt_too_long_within_the_stream_is_final() -> None:
    error = await fault(
        always(head(), event({"error": {"message": "the request exceeds the context size", "code": 400}}))
    )
    assert (error.code, error.disposition) == ("prompt_too_long", Disposition.FINAL)


@pytest.mark.parametrize(
    ("parts", "timeouts", "words"),
    [
        ([], Timeouts(first_token=0.4), "nothing for 0.4 seconds"),
        ([head()], Timeouts(first_token=0.4), "nothing for 0.4 seconds"),
        (
            [head(), event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})],
            Timeouts(first_token=0.4),
            "0.4",
        ),
        ([head(), text("a")], Timeouts(between_tokens=0.5, first_token=9), "nothing for 0.5 seconds"),
    ],
)
async def test_a_server_that_stalls_is_left(parts: list[bytes], timeouts: Timeouts, words: str) -> None:
    async with faulty_server(then_silence(*parts)) as server:
        with pytest.raises(EngineError, match=words) as failed:
            await run(Endpoint("openai", server.url, timeouts))
        assert (failed.value.code, failed.value.disposition) == ("idle_timeout", Disposition.RETRY)
        await until(lambda: server.left == 1)


async def test_the_whole_has_an_end_although_tokens_come() -> None:
    async def slowly(_: Asked) -> AsyncIterator[bytes]:
        yield head()
        while True:
            yield text("a")
            await asyncio.sleep(0.02)

    error = await fault(slowly, request(max_tokens=None), timeouts=Timeouts(total=0.5))
    assert (error.code, error.disposition) == ("run_timeout", Disposition.RETRY)


async def test_a_server_that_is_not_there_costs_no_attempt() -> None:
    async with faulty_server(always()) as server:
        url = server.url
    with pytest.raises(EngineError) as failed:
        await run(url)
    assert (failed.value.code, failed.value.disposition) == ("server_unreachable", Disposition.WAIT)


LINE = b"a" * 65536
EMPTY = event({"choices": [{"index": 0, "delta": {}, "finish_reason": None}]}) * 200
FLOODS = {
    "a line without end": (endless(head(), LINE), "server_error", {}),
    "an event without end": (endless(head(), b"data: " + LINE + b"\n"), "server_error", {}),
    "a JSON without end": (endless(head("application/json"), LINE), "server_error", {}),
    "a header without end": (endless(b"HTTP/1.1 200 OK\r\nX: ", LINE), "server_error", {}),
    "an error page without end": (
        endless(b"HTTP/1.1 500 X\r\nConnection: close\r\n\r\n", LINE),
        "engine_error",
        {},
    ),
    "comments without end": (endless(head(), b": here\n" * 5000), "idle_timeout", {"first_token": 1.0}),
    "empty events without end": (endless(head(), EMPTY), "idle_timeout", {"first_token": 1.0}),
    "tokens without end": (endless(head(), text("a") * 200), "server_error", {}),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_and_fills_no_memory(name: str) -> None:
    behaviour, code, timeouts = FLOODS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(heart())
    # Of this thread's own work: a machine that is busy with other things stops the heart as well.
    started = time.thread_time()
    error = await fault(behaviour, timeouts=Timeouts(**timeouts))
    seconds = time.thread_time() - started
    beating.cancel()
    assert error.code == code
    assert len(error.message) < 600
    # The peak of the process, so that it counts what came and went: in KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    # Whatever else runs in the loop goes on; what is over at once says nothing of that.
    assert seconds < 0.5 or beats >= 2


async def test_what_a_server_counts_wrong_is_not_believed() -> None:
    for wrong in (-5, 10**12, "many", None, True, 1.5):
        usage = {"prompt_tokens": wrong, "completion_tokens": wrong}
        async with faulty_server(always(head(), text("a"), text("b"), finish(**usage))) as server:
            made = await run(server.url)
        assert made.joined() == ["ab"]
        assert (made.prompt_tokens, made.completion_tokens) == (None, 2)


async def test_counts_that_come_with_each_event_are_not_added_up() -> None:
    parts = [
        event(
            {
                "choices": [{"index": 0, "delta": {"content": "a"}}],
                "usage": {"prompt_tokens": 3, "completion_tokens": n},
            }
        )
        for n in (2, 4, 6)
    ]
    async with faulty_server(always(head(), *parts, finish())) as server:
        made = await run(server.url)
    assert (made.prompt_tokens, made.completion_tokens) == (3, 6)


async def test_a_server_that_does_not_stream_is_read_as_well() -> None:
    whole = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "all of it"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    }
    async with faulty_server(always(answer(200, json.dumps(whole)))) as server:
        made = await run(server.url)
    assert made.joined() == ["all of it"]
    assert (made.finished, made.prompt_tokens, made.completion_tokens) == (True, 3, 5)


async def test_a_stream_in_odd_pieces_is_read() -> None:
    whole = (
        head() + b": hello\r\n\r\nevent: x\r\nid: 7\r\n" + (text("hé") + text("llo") + finish()).replace(b"\n", b"\r\n")
    )

    async def byte_by_byte(_: Asked) -> AsyncIterator[bytes]:
        for place in range(len(whole)):
            yield whole[place : place + 1]

    async with faulty_server(byte_by_byte) as server:
        made = await run(server.url)
    assert made.joined() == ["héllo"]


async def test_a_server_that_goes_on_after_its_end_is_not_waited_for() -> None:
    async with faulty_server(endless(head() + text("a") + finish(), b": more\n\n" * 100)) as server:
        async with asyncio.timeout(20):
            made = await run(server.url)
        assert made.joined() == ["a"]


async def test_closing_the_iterator_closes_the_connection() -> None:
    async with faulty_server(then_silence(head(), text("a"))) as server:
        engine = OpenAIEngine(Endpoint("openai", server.url))
        chunks = engine.run(request())
        assert (await anext(chunks)).texts == ["a"]
        await chunks.aclose()
        await until(lambda: server.left == 1)
        await engine.close()


async def test_cancelling_the_task_closes_the_connection() -> None:
    async with faulty_server(then_silence(head(), text("a"))) as server:
        task = asyncio.create_task(run(server.url))
        await until(lambda: server.written > len(head()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.left == 1)


async def test_messages_tools_and_images_go_on_untouched() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
            ],
        },
    ]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    asked = Request(
        "m",
        "rendered, and not to be sent",
        {"max_tokens": 5, "temperature": 0.0, "logprobs": 2, "skip_special_tokens": False},
        "test",
        5.0,
        30.0,
        messages=messages,
        asked={"model": "alias", "tools": tools, "tool_choice": "auto", "n": 3, "user": "somebody"},
    )
    async with faulty_server(always(head(), text("a"), finish())) as server:
        await run(server.url, asked)
    sent = server.asked[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.json == {
        "model": "m",
        "messages": messages,
        "tools": tools,
        "tool_choice": "auto",
        "max_tokens": 5,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/a/b/", "/a/b/chat/completions"),
    ],
)
async def test_the_address_is_a_base_url(address: str, path: str) -> None:
    async with faulty_server(always(head(), text("a"), finish())) as server:
        await run(server.url + address)
    assert server.asked[0].path == path


async def test_a_server_without_completions_gets_a_prompt_as_a_chat() -> None:
    async def chats_only(asked: Asked) -> AsyncIterator[bytes]:
        if asked.path.endswith("/chat/completions"):
            yield head() + text("hello") + finish()
        else:
            yield answer(404, '{"error":{"message":"This is a chat model"}}')

    async with faulty_server(chats_only) as server:
        engine = OpenAIEngine(Endpoint("openai", server.url))
        for _ in range(2):
            async with aclosing(engine.run(request(None))) as chunks:
                assert "".join([t async for chunk in chunks for t in chunk.texts]) == "hello"
        await engine.close()
    # What it lacks is asked for once.
    assert [asked.path.removeprefix("/v1") for asked in server.asked] == [
        "/completions",
        "/chat/completions",
        "/chat/completions",
    ]
    assert server.asked[1].json["messages"] == [{"role": "user", "content": "hi"}]


async def test_a_model_that_is_nowhere_is_said_so() -> None:
    error = await fault(always(answer(404, "")), request(None))
    assert (error.code, error.disposition) == ("model_unavailable", Disposition.FINAL)


class TestCredential:
    @pytest.fixture
    async def server(self) -> AsyncIterator[FaultyServer]:
        async with faulty_server(always(head(), text("a"), finish())) as server:
            yield server

    async def test_it_goes_into_each_request(self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("THEIR_KEY", " sesame\n")
        await run(Endpoint("openai", server.url, credential=Credential("env:THEIR_KEY")))
        assert server.asked[0].headers["authorization"] == "Bearer sesame"

    async def test_a_file_is_read_anew(self, server: FaultyServer, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text("one\n")
        engine = OpenAIEngine(Endpoint("openai", server.url, credential=Credential(f"file:{file}", tmp_path)))
        for secret in ("one", "two"):
            file.write_text(f"{secret}\n")
            async with aclosing(engine.run(request())) as chunks:
                async for _ in chunks:
                    pass
            assert server.asked[-1].headers["authorization"] == f"Bearer {secret}"
        await engine.close()

    @pytest.mark.parametrize("content", ["", "two\nlines", "ünicode"])
    async def test_without_one_nothing_is_sent(self, server: FaultyServer, tmp_path: Path, content: str) -> None:
        file = tmp_path / "key"
        file.write_text(content)
        for reference in (f"file:{file}", f"file:{tmp_path}/nowhere", "file:/etc/hostname", "env:NOT_SET_ANYWHERE"):
            with pytest.raises(EngineError) as failed:
                await run(Endpoint("openai", server.url, credential=Credential(reference, tmp_path)))
            assert (failed.value.code, failed.value.disposition) == ("server_refused", Disposition.WAIT)
            assert str(tmp_path) not in failed.value.message
        assert not server.asked

    @pytest.mark.parametrize("secret", ["sk-123", "env:", "file:", ""])
    def test_a_secret_is_no_reference(self, secret: str) -> None:
        with pytest.raises(ValueError, match="env:NAME or file:PATH"):
            Credential(secret)

    async def test_no_error_and_no_repr_shows_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("THEIR_KEY", "sesame")
        endpoint = Endpoint("openai", "http://127.0.0.1:1", credential=Credential("env:THEIR_KEY"))
        engine = open_engine(endpoint)
        with pytest.raises(EngineError) as failed:
            await engine.models(1.0)
        await engine.close()
        assert "sesame" not in f"{failed.value!r} {failed.value.raw} {endpoint!r} {vars(engine)!r}"


async def test_a_list_of_models_that_is_none_is_refused() -> None:
    for body in ("[]", '{"data": 7}', "<html>", '{"data": [{"id": 7}, {"id": ""}, {"nothing": 1}, 3]}'):
        async with faulty_server(always(answer(200, body))) as server:
            server.models = []
            engine = OpenAIEngine(Endpoint("openai", server.url))
            if "id" in body:
                assert await engine.models(3.0) == []
            else:
                with pytest.raises(EngineError):
                    await engine.models(3.0)
            await engine.close()


async def until(condition: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
