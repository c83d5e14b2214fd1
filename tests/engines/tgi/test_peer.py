"""Tickets that a TGI server runs: it is another instance of this service, asked by its routes below /tgi."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from app.config import Settings
from app.db.engine import Database
from app.queue.audit import Actor
from app.services.keys import Keys, NewKey
from tests.conftest import cloned_database
from tests.engine import busy
from tests.postgres_server import RunningPostgres
from tests.servers import RunningTriton, start_triton
from tests.service import Service, eventually, running_api, running_dispatcher

LONG = "[[sim:slow=100]][[sim:tokens=2000]]"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), ("chat",))
    yield server
    server.stop()


class Pair(NamedTuple):
    """A service without Triton, and the one that it has as its only server."""

    service: Service
    peer: Service


@pytest_asyncio.fixture
async def pair(
    make_settings: Callable[..., Settings],
    database: Database,
    postgres: RunningPostgres,
    template: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Pair]:
    _, key = await Keys(database).create(NewKey("front"), Actor(None, "tests"))
    monkeypatch.setenv("PEER_KEY", key)
    theirs = make_settings(default_model="chat", auth_required=True)
    async with (
        cloned_database(postgres, template) as url,
        running_api(theirs) as peer,
        running_dispatcher(theirs),
    ):
        peer.client.headers["Authorization"] = f"Bearer {key}"
        ours = make_settings(database_url=url, triton_urls=())
        async with running_api(ours) as service, running_dispatcher(ours):
            address = f"{str(peer.client.base_url).rstrip('/')}/tgi"
            fields = {"kind": "tgi", "address": address, "name": "peer", "credential": "env:PEER_KEY"}
            added = await service.client.post("/servers/", json=fields)
            assert added.status_code == 201, added.text

            async def served() -> bool:
                return (await service.client.get("/models/chat")).is_success

            await eventually(served, "the peer's model is known")
            yield Pair(service, peer)


async def test_a_ticket_is_run_with_its_parameters(pair: Pair) -> None:
    result = await pair.service.run(
        "[[sim:emit=one two three]]", "chat", temperature=0.7, top_p=0.9, top_k=20, seed=11, stop="two", logprobs=2
    )
    assert (result["status"], result["output"], result["finish_reason"]) == ("completed", "one ", "stop")
    (theirs,) = (await pair.peer.client.get("/results/")).json()
    sent = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 11, "stop": ["two"], "logprobs": 2}
    assert theirs["parameters"] | sent == theirs["parameters"]
    assert result["usage"] == theirs["usage"]
    ours, known = result["outputs"][0]["logprobs"], theirs["outputs"][0]["logprobs"]
    assert [set(token) for token in ours] == [set(token) for token in known]
    (attempt,) = await pair.service.attempts(result["id"])
    assert attempt["server"].endswith("/tgi")
    provenance = result["provenance"]
    assert attempt["provenance"] == provenance
    assert (provenance["server"], provenance["kind"]) == ("peer", "tgi")
    assert provenance["engine_version"] == (await pair.peer.client.get("/tgi/info")).json()["version"]
    assert provenance["parameters"] == {
        "seed": 11, "stop": ["two"], "max_new_tokens": 512, "do_sample": True, "temperature": 0.7, "top_p": 0.9,
        "top_k": 20, "top_n_tokens": 2, "details": True,
    }  # fmt: skip


async def test_what_it_generates_is_streamed(pair: Pair) -> None:
    body = {"model": "chat", "prompt": "[[sim:slow=150]]", "stream": True, "max_tokens": 12, "temperature": 0}
    pieces = []
    async with pair.service.client.stream("POST", "/v1/completions", json=body) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: {") and (choices := json.loads(line[6:])["choices"]):
                pieces.append(choices[0]["text"])
    (theirs,) = (await pair.peer.client.get("/results/")).json()
    assert len(pieces) > 3
    assert "".join(pieces) == theirs["output"]
    (ours,) = (await pair.service.client.get("/results/")).json()
    assert ours["usage"] == theirs["usage"]


async def test_a_cancel_frees_its_engine(pair: Pair, triton: RunningTriton) -> None:
    id_ = await pair.service.send(prompt=LONG, model="chat", parameters={"max_tokens": 2000})

    async def runs() -> bool:
        return await busy(triton, "chat") == 1

    await eventually(runs, "the peer's engine generates")
    assert (await pair.service.client.post(f"/results/{id_}/cancel")).is_success

    async def idle() -> bool:
        return await busy(triton, "chat") == 0

    result = await pair.service.settled(id_)
    assert result["error"]["code"] == "cancelled"
    await eventually(idle, "the peer's engine is free")
    # Of what would have taken more than three minutes. The engine is free before the peer has settled it.
    (theirs,) = (await pair.peer.client.get("/results/")).json()
    theirs = await pair.peer.settled(theirs["id"])
    assert theirs["error"]["code"] == "cancelled"


async def test_what_it_refuses_fails_with_its_reason(pair: Pair) -> None:
    result = await pair.service.run("Tell me.", "chat", logprobs=50)
    assert result["error"]["code"] == "invalid_parameters"
    assert "top_n_tokens" in result["error"]["message"]
    result = await pair.service.run("Tell me.", "chat", min_p=0.5)
    assert result["error"]["code"] == "not_supported_by_model"
    result = await pair.service.run("word " * 100_000, "chat")
    assert result["error"]["code"] == "prompt_too_long"


async def test_several_texts_are_as_many_requests(pair: Pair) -> None:
    result = await pair.service.run("Tell me.", "chat", n=3, max_tokens=4, seed=7)
    assert [each["index"] for each in result["outputs"]] == [0, 1, 2]
    theirs = (await pair.peer.client.get("/results/")).json()
    assert sorted(each["parameters"]["seed"] for each in theirs) == [7, 8, 9]


async def test_many_tickets_at_once(pair: Pair) -> None:
    results = await asyncio.gather(*(pair.service.run("Tell me.", "chat", max_tokens=8) for _ in range(20)))
    assert {result["status"] for result in results} == {"completed"}
    assert len((await pair.peer.client.get("/results/")).json()) == 20
