"""Tickets that say where they are to run: by a server's name or by kinds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from app.config import Settings
from tests.faulty_http import FaultyServer, always, faulty_server, finish, head, text
from tests.fleet.test_server_rows import added, changed
from tests.servers import RunningTriton
from tests.service import Service, eventually, running_api, running_dispatcher

ANSWER = "from the other kind"


class Mixed(NamedTuple):
    """A service that has `tiny` on a Triton, "one", and on a server with OpenAI's API, "two"."""

    service: Service
    triton: RunningTriton
    other: FaultyServer
    two: dict[str, Any]


@pytest_asyncio.fixture
async def mixed(make_settings: Callable[..., Settings], triton: RunningTriton) -> AsyncIterator[Mixed]:
    settings = make_settings(triton_urls=())
    async with (
        faulty_server(always(head(), text(ANSWER), finish(prompt_tokens=2, completion_tokens=3))) as other,
        running_api(settings) as service,
        running_dispatcher(settings),
    ):
        await added(service, triton.grpc_url, name="one")
        two = await added(service, other.url, name="two", kind="openai", models={"m": "tiny"})
        await served(service, 2)
        yield Mixed(service, triton, other, two)


async def served(service: Service, servers: int) -> None:
    async def are() -> bool:
        listed = (await service.client.get("/models/")).json()
        return any(each["name"] == "tiny" and len(each["servers"]) == servers for each in listed)

    await eventually(are, f"{servers} servers have it")


async def ran_on(service: Service, **wish: Any) -> str:
    result = await service.settled(await service.send(**wish, parameters={"max_tokens": 2}))
    assert result["status"] == "completed", result
    assert result["wish"] == {"server": None, "server_kinds": None} | wish
    return str((await service.attempts(result["id"]))[-1]["server"])


async def test_a_wish_is_honoured(mixed: Mixed) -> None:
    wishes: list[dict[str, Any]] = [
        {"server": "one"},
        {"server": "two"},
        {"server_kinds": ["openai"]},
        {"server_kinds": ["triton"]},
    ]
    ran = await asyncio.gather(*(ran_on(mixed.service, **wish) for wish in wishes * 4))
    assert ran == [mixed.triton.grpc_url, mixed.other.url, mixed.other.url, mixed.triton.grpc_url] * 4
    assert await ran_on(mixed.service, server_kinds=["gradio", "openai"]) == mixed.other.url
    # What wishes for nothing runs anywhere.
    result = await mixed.service.run(max_tokens=2)
    assert (result["status"], result["wish"]) == ("completed", None)


async def test_headers_wish_for_the_forms_of_others(mixed: Mixed) -> None:
    for path, body in (
        ("/v1/completions", {"model": "tiny", "prompt": "Tell me.", "max_tokens": 2}),
        ("/tgi/generate", {"model": "tiny", "inputs": "Tell me."}),
    ):
        for header, wanted in (
            ({"X-Server": "two"}, True),
            ({"X-Server-Kinds": "tgi, openai"}, True),
            (
                {"X-Server-Kinds": "triton"},
                False,
            ),
        ):
            said = await mixed.service.client.post(path, json=body, headers=header)
            assert said.status_code == 200, said.text
            assert (ANSWER in said.text) is wanted
    both = {"X-Server": "two", "X-Server-Kinds": "openai"}
    refused = await mixed.service.client.post(path, json=body, headers=both)
    assert refused.status_code == 422
    assert "either" in refused.text


async def test_the_lines_of_a_batch_have_its_wish(mixed: Mixed) -> None:
    client = mixed.service.client
    body = {"model": "tiny", "prompt": "Tell me.", "max_tokens": 2}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    content = "\n".join(json.dumps(line | {"custom_id": str(number)}) for number in range(4))
    file = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
    asked = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    refused = await client.post("/v1/batches", json=asked, headers={"X-Server": "three"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "server")
    assert "no server is called 'three'; there are: one, two" in refused.json()["error"]["message"]
    assert (await client.get("/v1/batches")).json()["data"] == []
    key = {"Idempotency-Key": "once"}
    made = [await client.post("/v1/batches", json=asked, headers=key | {"X-Server": "two"}) for _ in range(2)]
    assert made[0].json()["id"] == made[1].json()["id"]
    other = await client.post("/v1/batches", json=asked, headers=key | {"X-Server": "one"})
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_mismatch")

    async def output() -> Any:
        return (await client.get(f"/v1/batches/{made[0].json()['id']}")).json()["output_file_id"]

    answers = (await client.get(f"/v1/files/{await eventually(output, 'the batch ends', 40)}/content")).text
    texts = [json.loads(each)["response"]["body"]["choices"][0]["text"] for each in answers.splitlines()]
    assert texts == [ANSWER] * 4
    wishes = [each["wish"] for each in (await client.get("/results/")).json()]
    assert wishes == [{"server": "two", "server_kinds": None}] * 4


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"server": "three"}, "server: no server is called 'three'; there are: one, two"),
        ({"server_kinds": ["openai", "abacus"]}, "server_kinds: 'abacus' is none of triton, openai, tgi, gradio"),
        ({"server": "one", "server_kinds": ["openai"]}, "give either server or server_kinds"),
        ({"server_kinds": []}, "server_kinds"),
    ],
)
async def test_a_wish_for_what_is_not_there_is_refused(mixed: Mixed, wish: dict[str, Any], words: str) -> None:
    service = mixed.service
    context = await service.context()
    answer = await service.client.post(f"/models/send/tiny/{context}", json=wish)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    body = {"content": "Tell me.", "entries": [{"model": "tiny"}, {"model": "tiny", **wish}]}
    answer = await service.client.post("/comparisons/", json=body)
    assert answer.status_code == 422
    assert "entries.1" in answer.json()["detail"]
    assert (await service.client.get("/results/")).json() == []


async def test_a_ticket_whose_wish_is_not_met_says_what_to_do(mixed: Mixed) -> None:
    service = mixed.service
    await changed(service, mixed.two["id"], wanted="draining")
    await served(service, 1)
    wished = [await service.send(server="two"), await service.send(server_kinds=["openai"])]
    lost = await service.send(server_kinds=["tgi"])
    # Others go on, and none of these is run by another server meanwhile.
    assert (await service.run(max_tokens=2))["status"] == "completed"
    waiting = [(await service.result(id_))["waiting"] for id_ in (*wished, lost)]
    assert [each["reason"] for each in waiting] == ["no_server"] * 3
    assert waiting[0]["detail"] == (
        "It waits for the server two: two has the model unavailable (Its server is drained: it finishes what it has, "
        "and gets nothing more). Mend that, or cancel this ticket and send its context again without the wish."
    )
    assert waiting[2]["detail"].startswith("It waits for a server of the kind tgi, and there is none now: add or")
    await changed(service, mixed.two["id"], wanted="active")
    for id_ in wished:
        assert (await service.settled(id_))["output"] == ANSWER
    assert (await service.client.delete(f"/servers/{mixed.two['id']}")).status_code == 204
    # Tried again, it wishes for the same.
    again = (await service.client.post(f"/results/{wished[0]}/retry")).json()["result_id"]

    async def gone() -> bool:
        now = await service.result(again)
        return now["waiting"] and "there is none now" in (now["waiting"]["detail"] or "")

    await eventually(gone, "it waits for a server that is gone")
    for id_ in (again, lost):
        await service.client.post(f"/results/{id_}/cancel")
        assert (await service.settled(id_))["error"]["code"] == "cancelled"


async def test_entries_of_a_comparison_name_servers(mixed: Mixed) -> None:
    body = {
        "content": "Tell me.",
        "parameters": {"max_tokens": 2},
        "server_kinds": ["triton"],
        "entries": [{"model": "tiny"}, {"model": "tiny", "server": "two"}, {"model": "tiny", "server": "one"}],
    }
    answer = await mixed.service.client.post("/comparisons/", json=body, headers={"Prefer": "wait=30"})
    assert answer.status_code == 202, answer.text
    entries = answer.json()["entries"]
    assert [entry["server"] for entry in entries] == [mixed.triton.grpc_url, mixed.other.url, mixed.triton.grpc_url]
    assert [entry["output"] == ANSWER for entry in entries] == [False, True, False]
