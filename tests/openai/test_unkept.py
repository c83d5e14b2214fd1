"""`store: false`: once the answer is delivered, or nobody is there for it, no text of it can be read."""

import json
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx
import openai
import pytest

from app.config import Settings
from app.db.engine import Database
from app.dispatch.janitor import forget_unkept
from app.queue.unkept import UnkeptStore
from tests.openai.batch_kit import ended, line, lines_of, start
from tests.openai.conftest import client_of
from tests.openai.response_kit import emit
from tests.service import Service, eventually, running_api, running_dispatcher

ASKED, SAID = "quokka", "numbat"
TEXT = f"{ASKED}? " + emit(f"A {SAID} it is.")
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": TEXT}], "metadata": {"about": ASKED}}
RESPONSE: dict[str, Any] = {"input": TEXT, "instructions": f"Mind the {ASKED}.", "metadata": {"about": ASKED}}
PROMPT: dict[str, Any] = {"prompt": TEXT, "stop": [ASKED], "n": 2}
PATHS = [("chat/completions", CHAT), ("responses", RESPONSE), ("completions", PROMPT)]
TABLES = ("contexts", "results", "result_events", "attempts", "webhook_deliveries", "idempotency_keys", "batches")


async def said_in(url: str) -> str:
    """All that the database holds, as text."""
    connection = await asyncpg.connect(url)
    try:
        rows = [row for table in TABLES for row in await connection.fetch(f"SELECT t::text FROM {table} t")]
    finally:
        await connection.close()
    return "\n".join(row[0] for row in rows)


async def require_forgotten(service: Service) -> None:
    async def gone() -> bool:
        text = await said_in(service.settings.database_url)
        return ASKED not in text and SAID not in text and "sim:" not in text

    await eventually(gone, "the texts are removed")


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_delivered_is_gone_but_for_its_usage(
    service: Service, path: str, body: dict[str, Any], stream: bool
) -> None:
    asked = {"model": "chat", "store": False, "stream": stream} | body
    answer = await service.client.post(f"/v1/{path}", json=asked, headers={"Idempotency-Key": "once"})
    assert answer.status_code == 200, answer.text
    assert stream or SAID in answer.text
    await require_forgotten(service)
    (row,) = (await service.client.get("/results/")).json()
    assert (row["status"], row["kept"], row["output"], row["outputs"], row["parameters"]) == (
        *("completed", False, None, None, {}),
    )
    assert row["usage"]["prompt_tokens"] > 0
    assert row["usage"]["completion_tokens"] > 0
    counted = (await service.client.get("/usage")).json()["total"]
    assert counted["prompt_tokens"] == row["usage"]["prompt_tokens"]
    assert (await service.client.get("/contexts/")).json() == []
    assert (await service.client.get(f"/contexts/{row['context_id']}")).status_code == 404
    assert (await service.client.post(f"/models/send/chat/{row['context_id']}")).status_code == 404
    assert (await service.client.post(f"/results/{row['id']}/retry")).status_code == 410
    prefix = {"chat/completions": "chatcmpl-", "responses": "resp_", "completions": "cmpl-"}[path]
    for query in ("", "?stream=true"):
        again = await service.client.get(f"/v1/{path}/{prefix}{row['id'].replace('-', '')}{query}")
        assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")
    replayed = await service.client.post(f"/v1/{path}", json=asked, headers={"Idempotency-Key": "once"})
    assert (replayed.status_code, replayed.json()["error"]["code"]) == (410, "removed")


async def test_nothing_goes_on_from_it(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(
        model="chat", input=emit("Hi."), store=False, include=["reasoning.encrypted_content"]
    )
    assert first.to_dict()["store"] is False
    item = first.output[0].to_dict()
    for changes in ({"previous_response_id": first.id}, {"input": [{"type": "item_reference", "id": item["id"]}]}):
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(**({"model": "chat", "input": "x"} | changes))  # type: ignore[call-overload]
    # What was put out is sent again instead.
    items: Any = [{"role": "user", "content": "x"}, item, {"role": "user", "content": emit("Again.")}]
    assert (await client.responses.create(model="chat", input=items, store=False)).output_text == "Again."
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="chat", input="x", store=False, background=True)
    assert refused.value.param == "background"


async def test_a_failure_leaves_the_code_of_its_error_only(service: Service) -> None:
    body = {"model": "chat", "store": False, "messages": [{"role": "user", "content": f"{ASKED} " * 5000}]}
    answer = await service.client.post("/v1/chat/completions", json=body)
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    await require_forgotten(service)
    (row,) = (await service.client.get("/results/")).json()
    assert (row["status"], row["error"]["code"]) == ("failed", "prompt_too_long")
    quoting = {"role": "user", "content": f"[[sim:error={ASKED} is no word]]"}
    answer = await service.client.post("/v1/chat/completions", json=body | {"messages": [quoting]})
    assert f"{ASKED} is no word" in answer.json()["error"]["message"]
    await require_forgotten(service)
    row, _ = (await service.client.get("/results/")).json()
    assert (row["status"], "store: false" in row["error"]["message"]) == ("failed", True)


async def test_what_nobody_waits_for_is_removed_by_the_janitor(
    make_settings: Callable[..., Settings], database: Database
) -> None:
    unkept = UnkeptStore(database)
    async with running_api(make_settings()) as service:
        for stream in (False, True):
            body = {"model": "chat", "store": False, "stream": stream} | CHAT
            with pytest.raises(httpx.ReadTimeout):
                await service.client.post("/v1/chat/completions", json=body, timeout=0.5)
        rows = (await service.client.get("/results/")).json()
        await forget_unkept(unkept, 0)
        # It is not run yet.
        assert ASKED in await said_in(service.settings.database_url)
        async with running_dispatcher(make_settings()):
            for row in rows:
                assert (await service.settled(row["id"]))["status"] == "completed"
        await forget_unkept(unkept, 3600)
        assert SAID in await said_in(service.settings.database_url)
        await forget_unkept(unkept, 0)
        await require_forgotten(service)


async def test_a_batchs_lines_are_kept_until_its_files_are_written(
    make_settings: Callable[..., Settings], database: Database
) -> None:
    unkept = UnkeptStore(database)
    body = {"model": "chat", "store": False} | CHAT
    async with running_api(make_settings()) as service, client_of(service) as client:
        batch = await start(
            client, [line(f"l{n}", body, "/v1/chat/completions") for n in range(3)], "/v1/chat/completions"
        )
        async with running_dispatcher(make_settings()):
            done = await ended(client, batch)
        assert [SAID in json.dumps(each) for each in await lines_of(client, done.output_file_id)] == [True] * 3
        await forget_unkept(unkept, 0)
        await require_forgotten(service)
