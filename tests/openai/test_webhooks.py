"""`webhook` on requests to /v1, for a real receiver."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import openai
import pytest
import pytest_asyncio

from app.config import Settings
from app.db.engine import Database
from app.queue.audit import KEYLESS
from app.services.keys import Keys, NewKey
from tests.conftest import ROOT
from tests.docs.test_docs import blocks
from tests.openai.batch_kit import ended, in_progress, line, prompt, start
from tests.openai.conftest import client_of
from tests.service import Service, running_api, running_dispatcher
from tests.webhooks.receiver import Receiver, receiving

TOO_LONG = "far too long " * 2000
BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
    "completions": {"model": "tiny", "prompt": "Hi", "max_tokens": 3},
    "responses": {"model": "chat", "input": "Hi", "max_output_tokens": 3},
    "embeddings": {"model": "embed", "input": "Hi"},
}


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"webhook_allow_private": True} | changes))

    return make


@pytest.mark.parametrize("path", BODIES)
async def test_the_end_of_a_request_is_announced(service: Service, receiver: Receiver, path: str) -> None:
    webhook = {"url": f"{receiver.url}/ok"}
    answer = await service.client.post(f"/v1/{path}", json=BODIES[path] | {"webhook": webhook})
    assert answer.status_code == 200, answer.text
    [hook] = await receiver.has(1)
    (result,) = (await service.client.get("/results/")).json()
    assert (hook.event["type"], hook.event["data"]) == ("result.completed", result)
    if path != "embeddings":
        assert UUID(result["id"]).hex in answer.json()["id"]
    assert "webhook" not in answer.json()


async def test_the_documents_example_is_announced(service: Service, receiver: Receiver) -> None:
    example = blocks((ROOT / "docs" / "webhooks.md").read_text(), "python")[0]
    example = example.replace("https://example.com/hook", f"{receiver.url}/ok").replace('"demo"', '"chat"')
    base_url = str(service.client.base_url).rstrip("/") + "/v1"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", example],
        env={**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "EMPTY", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    [hook] = await receiver.has(1)
    assert hook.event["type"] == "result.completed"


async def test_streams_and_failures_are_announced(
    client: openai.AsyncOpenAI, service: Service, receiver: Receiver
) -> None:
    asked = {"url": f"{receiver.url}/ok", "events": ["result.failed"]}
    chat: dict[str, Any] = BODIES["chat/completions"] | {"extra_body": {"webhook": asked}}
    _ = [chunk async for chunk in await client.chat.completions.create(**chat, stream=True)]
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(**(chat | {"messages": [{"role": "user", "content": TOO_LONG}]}))
    response = await client.responses.create(
        model="chat", input=TOO_LONG, background=True, extra_body={"webhook": asked}
    )
    hooks = await receiver.has(2)
    assert {hook.event["data"]["error"]["code"] for hook in hooks} == {"prompt_too_long"}
    assert response.id.removeprefix("resp_") in {UUID(hook.event["data"]["id"]).hex for hook in hooks}
    for result in (await service.client.get("/results/")).json():
        told = (await service.client.get(f"/results/{result['id']}/webhooks")).json()
        assert [each["event"] for each in told] == ["result.failed"] * (result["status"] == "failed")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("webhook", "param"),
    [
        ({"url": "http://169.254.169.254/"}, "webhook.url"),
        ({}, "webhook.url"),
        ({"url": "https://example.com/hook", "events": []}, "webhook.events"),
        ({"url": "https://example.com/hook", "events": ["result.started"]}, "webhook.events[0]"),
        ({"url": "https://example.com/hook", "secret": "x"}, "webhook.secret"),
        ("https://example.com/hook", "webhook"),
    ],
)
async def test_what_cannot_be_delivered_is_refused_and_nothing_is_stored(
    api: Service, path: str, webhook: Any, param: str
) -> None:
    answer = await api.client.post(f"/v1/{path}", json=BODIES[path] | {"webhook": webhook})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert (await api.client.get("/results/")).json() == []


async def test_another_webhook_is_another_request(service: Service) -> None:
    async def send(**body: Any) -> int:
        answer = await service.client.post(
            "/v1/completions", json=BODIES["completions"] | body, headers={"Idempotency-Key": "k"}
        )
        return answer.status_code

    webhook = {"url": "https://example.com/hook"}
    assert [await send(webhook=webhook), await send(webhook=webhook), await send()] == [200, 200, 400]


async def test_each_line_of_a_batch_may_have_one(
    make_settings: Callable[..., Settings], database: Database, receiver: Receiver
) -> None:
    """That of the key hears of the batch; a line's own of its result."""
    made, key = await Keys(database).create(NewKey("alice"), KEYLESS)
    async with database.hot() as connection:
        hook = {"url": f"{receiver.url}/status/200", "events": ["result.completed"]}
        await connection.execute("UPDATE api_keys SET webhook = $1 WHERE id = $2", hook, made["id"])
    settings = make_settings(auth_required=True)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(running_api(settings))
        client = await stack.enter_async_context(client_of(service, api_key=key))
        webhook = {"url": f"{receiver.url}/ok"}
        lines = [line("a", prompt(webhook=webhook)), line("b", prompt()), line("c", prompt(TOO_LONG, webhook=webhook))]
        batch = await in_progress(client, await start(client, lines))
        await stack.enter_async_context(running_dispatcher(settings))
        batch = await ended(client, batch)
        assert batch.status == "completed"
        events = {hook.event["data"]["client_reference"]: hook.event["type"] for hook in await receiver.has(2)}
        assert events == {"a": "result.completed", "c": "result.failed"}
        [told] = await receiver.has(1, "/status/200")
        assert told.event["type"] == "batch.completed"
        assert len(receiver.at("/ok")) == 2
        refused = await ended(client, await start(client, [line("a", prompt(webhook={"url": "ftp://example.com"}))]))
        assert refused.errors is not None
        assert [(error.code, error.param) for error in refused.errors.data or []] == [
            ("invalid_request", "body.webhook.url")
        ]
