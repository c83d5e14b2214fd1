"""Servers that are rows: added, changed and removed while the service runs."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.config import Settings
from app.db.engine import Database
from app.fleet.fleet import open_fleet
from app.queue.servers import ServerStore
from nvidia_triton.local.settings import free_ports
from tests.conftest import ROOT
from tests.engine import busy
from tests.servers import RunningTriton
from tests.service import Service, eventually, running_api, running_dispatcher

Make = Callable[..., Settings]


async def added(service: Service, address: str, **fields: Any) -> dict[str, Any]:
    answer = await service.client.post("/servers/", json={"address": address, **fields})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def changed(service: Service, id_: str, **fields: Any) -> dict[str, Any]:
    answer = await service.client.patch(f"/servers/{id_}", json=fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def listed(service: Service) -> dict[str, dict[str, Any]]:
    return {server["name"]: server for server in (await service.client.get("/servers/")).json()}


async def test_a_server_that_is_added_is_used_and_one_that_is_removed_is_not(
    make_settings: Make, triton: RunningTriton
) -> None:
    """Without a restart, by processes that knew of none; the notification is quicker than the next look."""
    settings = make_settings(triton_urls=(), probe_seconds=60.0)
    async with running_api(settings) as service, running_dispatcher(settings):
        assert await listed(service) == {}
        server = await added(service, triton.grpc_url, name="one", hourly_price=0.5, concurrency=3)
        assert (server["state"], server["origin"], server["concurrency"]) == ("unknown", "api", 3)

        async def up() -> bool:
            return (await listed(service))["one"]["state"] == "up"

        await eventually(up, "the API has asked it", 20)
        view = (await service.client.get(f"/servers/{server['id']}")).json()
        assert view["since"] is not None
        assert {"tiny", "slow"} <= {model["name"] for model in view["served"]}
        result = await service.run(max_tokens=2)
        assert result["status"] == "completed"
        assert (await service.attempts(result["id"]))[0]["server"] == triton.grpc_url

        async def counted() -> dict[str, Any]:
            now: dict[str, Any] = (await service.client.get(f"/servers/{server['id']}")).json()
            return now if now["attempts"] else {}

        now = await eventually(counted, "what was done there is counted")
        assert (now["attempts"], now["in_flight"], now["completion_tokens"]) == (1, 0, 2)
        assert now["spent"] == pytest.approx(now["gpu_seconds"] * 0.5 / 3600)
        assert (await service.client.delete(f"/servers/{server['id']}")).status_code == 204
        assert await listed(service) == {}

        async def gone() -> bool:
            return (await service.client.get("/health/ready")).json()["triton"] == []

        await eventually(gone, "it is let go of", 20)
        assert (await service.client.get(f"/servers/{server['id']}")).status_code == 404


async def test_without_notifications_the_next_look_finds_it(
    make_settings: Make, database: Database, triton: RunningTriton
) -> None:
    async with open_fleet(make_settings(triton_urls=()), ServerStore(database)) as fleet:
        await fleet.refresh()
        assert fleet.servers == []
        async with database.transaction() as connection:
            await connection.execute(
                "INSERT INTO servers (name, kind, address) VALUES ('x', 'triton', $1)", triton.grpc_url
            )
        await fleet.refresh()
        assert [server.up for server in fleet.servers] == [True]


async def test_a_server_that_drains_gets_nothing_more_and_ends_what_it_has(
    make_settings: Make, triton: RunningTriton
) -> None:
    settings = make_settings(triton_urls=())
    async with running_api(settings) as service, running_dispatcher(settings):
        server = await added(service, triton.grpc_url, name="one")
        first = await service.send(model="slow", parameters={"max_tokens": 300, "ignore_eos": True})

        async def running() -> bool:
            return (await service.result(first))["phase"] == "running"

        await eventually(running, "it runs")
        now = await changed(service, server["id"], wanted="draining")
        assert (now["state"], now["in_flight"]) == ("draining", 1)

        async def shut() -> bool:
            return (await service.client.get("/models/tiny")).json()["state"] == "unavailable"

        await eventually(shut, "no server takes the model's tickets")
        assert (await service.settled(first))["status"] == "completed"
        assert len(await service.attempts(first)) == 1

        async def drained() -> bool:
            return (await listed(service))["one"]["state"] == "drained"

        await eventually(drained, "nothing runs there")
        second = await service.send(parameters={"max_tokens": 2})
        assert (await service.result(second, wait=1))["waiting"]["reason"] == "no_server"
        await changed(service, server["id"], wanted="active")
        assert (await service.settled(second))["status"] == "completed"


async def test_models_may_have_other_names_here(make_settings: Make, triton: RunningTriton) -> None:
    settings = make_settings(triton_urls=())
    async with running_api(settings) as service, running_dispatcher(settings):
        server = await added(service, triton.grpc_url, models={"tiny": "small"})
        result = await service.run(model="small", max_tokens=2) if await _knows(service, "small") else {}
        assert result["status"] == "completed"
        names = {model["name"] for model in (await service.client.get(f"/servers/{server['id']}")).json()["served"]}
        assert names == {"small"}


async def _knows(service: Service, model: str) -> bool:
    async def known() -> bool:
        return (await service.client.get(f"/models/{model}")).status_code == 200

    return bool(await eventually(known, "the model is known"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"address": "http://there:80"}, "address"),
        ({"address": "there:99999"}, "address"),
        ({"kind": "abacus"}, "kind"),
        ({"kind": "tgi", "address": "there:80"}, "address"),
        ({"credential": "sk-secret"}, "credential"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1_000_000}, "concurrency"),
        ({"hourly_price": -1}, "hourly_price"),
        ({"models": {"a": "x", "b": "x"}}, "models"),
        ({"timeouts": {"total": 0}}, "timeouts.total"),
        ({"wanted": "gone"}, "wanted"),
        ({"name": ""}, "name"),
        ({"nmae": "x"}, "nmae"),
    ],
)
async def test_what_cannot_be_a_server_is_refused(api: Service, fields: dict[str, Any], named: str) -> None:
    before = set(await listed(api))
    answer = await api.client.post("/servers/", json={"address": "10.0.0.9:8001"} | fields)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["field"] == named
    assert "sk-secret" not in answer.text
    assert set(await listed(api)) - before <= set(api.settings.triton_urls)


async def test_a_change_leaves_the_rest_and_null_takes_it_back(api: Service) -> None:
    server = await added(api, "10.0.0.9:8001", name="one", concurrency=3, timeouts={"total": 5}, credential="env:KEY")
    now = await changed(api, server["id"], hourly_price=1.5, concurrency=None)
    assert (now["hourly_price"], now["name"], now["timeouts"]["total"]) == (1.5, "one", 5)
    assert (now["concurrency"], now["credential"]) == (api.settings.model_concurrency, "env:KEY")
    for fields, status in (({"address": "http://x"}, 422), ({"wanted": None}, 422), ({"kind": "openai"}, 422)):
        assert (await api.client.patch(f"/servers/{server['id']}", json=fields)).status_code == status
    await added(api, "10.0.0.10:8001", name="two")
    for fields in ({"name": "two"}, {"address": "10.0.0.10:8001"}):
        answer = await api.client.patch(f"/servers/{server['id']}", json=fields)
        assert (answer.status_code, answer.json()["code"]) == (409, "server_exists")
    for body in ({"address": "10.0.0.9:8001"}, {"address": "10.0.0.11:8001", "name": "one"}):
        answer = await api.client.post("/servers/", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "server_exists")
    assert set(await listed(api)) >= {"one", "two"}
    audit = (await api.client.get("/audit/")).json()
    assert [entry["action"] for entry in audit] == ["server.added", "server.changed", "server.added"]
    for method in ("GET", "DELETE"):
        assert (await api.client.request(method, f"/servers/{uuid4()}")).json()["code"] == "server_not_found"


async def test_servers_of_the_environment_and_the_file_are_rows_too(
    make_settings: Make, triton: RunningTriton, tmp_path: Path
) -> None:
    file = tmp_path / "servers.json"
    (port,) = free_ports(1)
    file.write_text(json.dumps({"servers": [{"url": f"127.0.0.1:{port}", "name": "rented", "hourly_price": 0.4}]}))
    settings = make_settings(triton_servers_file=file)
    async with running_api(settings) as service, running_dispatcher(settings):

        async def both() -> dict[str, Any]:
            found = await listed(service)
            return found if len(found) == 2 and found[triton.grpc_url]["state"] == "up" else {}

        found = await eventually(both, "both are rows")
        own, rented = found[triton.grpc_url], found["rented"]
        assert (own["origin"], rented["origin"], rented["hourly_price"]) == ("environment", "file", 0.4)
        answer = await service.client.patch(f"/servers/{rented['id']}", json={"hourly_price": 1})
        assert (answer.status_code, answer.json()["code"]) == (409, "server_listed_elsewhere")
        assert "servers file" in answer.json()["detail"]
        answer = await service.client.delete(f"/servers/{own['id']}")
        assert (answer.status_code, "TRITON_URLS" in answer.json()["detail"]) == (409, True)
        # It may be drained all the same.
        assert (await changed(service, own["id"], wanted="disabled"))["state"] == "disabled"

        async def left() -> bool:
            known = (await service.client.get("/health/ready")).json()["triton"]
            return [server["name"] for server in known] == ["rented"]

        await eventually(left, "it is let go of")
        file.write_text('{"servers": []}')

        async def only_own() -> bool:
            return list(await listed(service)) == [triton.grpc_url]

        await eventually(only_own, "the line's row is gone", 40)


def run_command(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli.servers", *arguments],
        cwd=ROOT,
        env={"DATABASE_URL": settings.database_url, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_the_command_adds_lists_drains_and_removes(api: Service) -> None:
    async def run(*arguments: str) -> str:
        done = await asyncio.to_thread(run_command, api.settings, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "gpu1" in await run("add", "gpu1", "10.0.0.5:8001", "--models", "a=b", "--concurrency", "8")
    assert (await listed(api))["gpu1"]["models"] == {"a": "b"}
    assert "draining" in await run("drain", "gpu1")
    table = await run()
    assert "gpu1" in table
    assert "draining" in table
    await run("activate", "gpu1")
    await run("remove", "gpu1")
    assert "gpu1" not in await listed(api)
    done = await asyncio.to_thread(run_command, api.settings, "drain", "gpu1")
    assert (done.returncode, "make servers" in done.stderr) == (1, True)
    done = await asyncio.to_thread(run_command, api.settings, "add", "x", "nonsense")
    assert (done.returncode, "host:port" in done.stderr) == (1, True)


SLOW = {"max_tokens": 60, "ignore_eos": True}


async def test_two_dispatchers_bring_no_more_to_the_engine_than_one(make_settings: Make, triton: RunningTriton) -> None:
    """The engine itself says how many it runs."""
    settings = make_settings(triton_urls=())
    async with running_api(settings) as service, running_dispatcher(settings), running_dispatcher(settings):
        await added(service, triton.grpc_url, concurrency=3)
        context = await service.context()
        await _knows(service, "slow")
        tickets = [await service.send(context, model="slow", parameters=SLOW) for _ in range(24)]
        over = asyncio.Event()
        seen: list[float] = []

        async def watch() -> None:
            while not over.is_set():
                seen.append(await busy(triton, "slow"))
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        ends = await asyncio.gather(*(service.settled(ticket, 120) for ticket in tickets))
        over.set()
        await watching
        assert {end["status"] for end in ends} == {"completed"}
        assert 2 <= max(seen) <= 3


async def test_a_server_is_added_drained_and_removed_under_load_and_nothing_is_lost(
    make_settings: Make, triton: RunningTriton
) -> None:
    settings = make_settings(triton_urls=())
    other = triton.grpc_url.replace("127.0.0.1", "localhost")
    async with running_api(settings) as service, running_dispatcher(settings):
        first = await added(service, triton.grpc_url, name="first", concurrency=2)
        await _knows(service, "slow")
        context = await service.context()
        tickets = [await service.send(context, model="slow", parameters=SLOW) for _ in range(40)]
        second = await added(service, other, name="second", concurrency=2)

        async def both_work() -> bool:
            found = await listed(service)
            return bool(found["first"]["in_flight"] and found["second"]["in_flight"])

        await eventually(both_work, "both servers have work", 60)
        await changed(service, first["id"], wanted="draining")

        async def drained() -> bool:
            return (await listed(service))["first"]["state"] == "drained"

        await eventually(drained, "the first is drained", 60)
        assert (await service.client.delete(f"/servers/{first['id']}")).status_code == 204
        ends = await asyncio.gather(*(service.settled(ticket, 120) for ticket in tickets))
        assert {(end["status"], end["attempt_count"]) for end in ends} == {("completed", 1)}
        attempts = [(await service.attempts(ticket))[0] for ticket in tickets]
        ended_on_first = [each["ended_at"] for each in attempts if each["server"] == triton.grpc_url]
        started_last = max(each["started_at"] for each in attempts)
        assert ended_on_first
        assert max(ended_on_first) < started_last
        view = (await service.client.get(f"/servers/{second['id']}")).json()
        assert view["completion_tokens"] == 60 * sum(each["server"] == other for each in attempts)
