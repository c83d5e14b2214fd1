"""Models that are loaded and unloaded on a real tritonserver by an admin's order, while tickets come."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tritonclient.grpc import aio

from app.config import Settings
from app.services import model_orders
from nvidia_triton.local.settings import free_ports
from nvidia_triton.local.triton import TritonServer
from tests.servers import start_triton
from tests.service import Service, eventually, running_api, running_dispatcher

Make = Callable[..., Settings]


async def order(service: Service, id_: str, model: str, what: str) -> Any:
    return await service.client.post(f"/servers/{id_}/models/{model}/{what}")


async def only_server(service: Service) -> str:
    async def up() -> str:
        servers = (await service.client.get("/servers/")).json()
        return str(servers[0]["id"]) if servers and servers[0]["state"] == "up" else ""

    return str(await eventually(up, "the server is up"))


async def test_a_model_is_unloaded_and_loaded_and_its_tickets_wait_meanwhile(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Any
) -> None:
    server = start_triton(tmp_path, ("tiny",))
    settings = make_settings(triton_urls=(server.grpc_url,))
    try:
        async with running_api(settings) as service, running_dispatcher(settings):
            id_ = await only_server(service)
            answer = await order(service, id_, "tiny", "unload")
            assert (answer.status_code, answer.json()["state"]) == (200, "unloaded")

            async def unloaded() -> bool:
                (model,) = (await service.client.get(f"/servers/{id_}")).json()["served"]
                return bool(model["state"] == "unavailable")

            await eventually(unloaded, "the server's list says so")
            waiting = await service.send(prompt="Wait.", parameters={"max_tokens": 1})
            answer = await order(service, id_, "tiny", "load")
            assert (answer.status_code, answer.json()["state"]) == (200, "ready")
            assert (await service.settled(waiting))["status"] == "completed"
            assert len(await service.attempts(waiting)) == 1
            # One that was never loaded, and takes its time.
            monkeypatch.setattr(model_orders, "WAIT_SECONDS", 0.01)
            answer = await order(service, id_, "slow-load", "load")
            assert (answer.status_code, answer.json()["state"]) == (202, "loading")

            async def ready() -> bool:
                served = (await service.client.get(f"/servers/{id_}")).json()["served"]
                return {"name": "slow-load", "state": "ready", "in_flight": 0} in served

            await eventually(ready, "it is loaded whoever waits")
            monkeypatch.undo()
            answer = await order(service, id_, "<b>", "load")
            assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
            assert "slow-load" in answer.json()["detail"]
            answer = await order(service, id_, "broken", "load")
            assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")
            assert "could not load broken" in answer.json()["detail"]
            answer = await order(service, str(uuid4()), "tiny", "load")
            assert (answer.status_code, answer.json()["code"]) == (404, "server_not_found")
            server.kill()
            answer = await order(service, id_, "tiny", "load")
            assert (answer.status_code, answer.json()["code"]) == (503, "server_unreachable")
    finally:
        server.kill()
    found = await rows.fetch("SELECT action, details ->> 'model' AS model FROM audit ORDER BY id")
    assert [tuple(row) for row in found] == [
        ("model.unload_ordered", "tiny"),
        ("model.load_ordered", "tiny"),
        ("model.load_ordered", "slow-load"),
        ("model.load_ordered", "broken"),
    ]


async def test_a_model_that_was_loaded_by_order_is_loaded_again_after_a_restart_until_it_is_unloaded(
    make_settings: Make, tmp_path: Path, rows: Any
) -> None:
    server = start_triton(tmp_path, ("tiny",))
    settings = make_settings(triton_urls=(server.grpc_url,))
    try:
        async with running_api(settings) as service, running_dispatcher(settings):
            id_ = await only_server(service)

            async def states() -> dict[str, str]:
                served = (await service.client.get(f"/servers/{id_}")).json()["served"]
                return {model["name"]: model["state"] for model in served}

            for model in ("echo", "count"):
                assert (await order(service, id_, model, "load")).status_code == 200
            assert (await order(service, id_, "broken", "load")).status_code == 409
            assert (await order(service, id_, "count", "unload")).status_code == 200
            assert await rows.fetchval("SELECT array_agg(model) FROM ordered_models") == ["echo"]
            # One that could be loaded once; and a server that was just asked would be given time.
            add = "INSERT INTO ordered_models (server_id, model, asked_at) VALUES ($1, $2, '2026-01-01')"
            await rows.execute(add, id_, "broken")
            await rows.execute("UPDATE ordered_models SET asked_at = '2026-01-01'")
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

            async def again() -> bool:
                left = await rows.fetchval("SELECT array_agg(model) FROM ordered_models")
                return (await states()).get("echo") == "ready" and left == ["echo"]

            await eventually(again, "it is loaded again, and what cannot be loaded is tried once")
            assert "count" not in await states()
            # Unloaded by somebody else, it stays so.
            await rows.execute("UPDATE ordered_models SET asked_at = '2026-01-01'")
            await rows.execute(add, id_, "count")
            async with aio.InferenceServerClient(server.grpc_url) as client:
                await client.unload_model("echo")

            async def looked() -> bool:
                return (await states()).get("count") == "ready"

            await eventually(looked, "a dispatcher has looked at all orders since")
            assert (await states())["echo"] == "unavailable"
    finally:
        server.kill()


async def test_servers_that_take_no_orders_say_so(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton that is not in explicit mode has all models of its repository, and keeps them."""
    explicit = TritonServer.command

    def fixed(self: TritonServer) -> list[str]:
        kept = [each for each in explicit(self) if not each.startswith(("--load-model", "--model-control-mode"))]
        return [*kept, "--model-control-mode=none"]

    monkeypatch.setattr(TritonServer, "command", fixed)
    repository = tmp_path / "models"
    repository.mkdir()
    (repository / "tiny").symlink_to(Path(__file__).parents[1] / "models" / "tiny")
    server = start_triton(tmp_path / "server", ("tiny",), repository)
    settings = make_settings(triton_urls=(server.grpc_url,))
    try:
        async with running_api(settings) as service:
            id_ = await only_server(service)
            answer = await order(service, id_, "tiny", "unload")
            assert (answer.status_code, answer.json()["code"]) == (409, "model_order_refused")
            assert "--model-control-mode=explicit" in answer.json()["detail"]
            other = {"kind": "openai", "address": f"http://127.0.0.1:{free_ports(1)[0]}/v1"}
            added = (await service.client.post("/servers/", json=other)).json()
            answer = await order(service, added["id"], "tiny", "load")
            assert (answer.status_code, answer.json()["code"]) == (409, "model_order_refused")
    finally:
        server.kill()
