"""Dead models: they say so, tickets wait, and the service loads them again."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from app.config import Settings
from app.engines.base import EngineError, Request
from app.engines.triton.control import TritonControl
from app.fleet.fleet import open_fleet
from app.fleet.quarantine import Silence
from nvidia_triton.local.triton import TritonServer
from tests.engine import busy
from tests.servers import TEST_MODELS, RunningTriton, start_triton
from tests.service import Process, Service, eventually, running_api, running_dispatcher


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path / "triton", ("tiny", "fragile", "slow", "embed"))
    yield server
    server.kill()


@pytest.fixture
def settings(make_settings: Callable[..., Settings], victim: RunningTriton) -> Settings:
    return make_settings(triton_urls=(victim.grpc_url,), stall_seconds=0.7)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.dispatch.recovery.UNLOAD_SECONDS", 1.0)
    monkeypatch.setattr("app.queue.set_aside.PAUSE_SECONDS", 0.5)


def kill_stub(server: RunningTriton, model: str) -> None:
    for child in psutil.Process(server.pid).children(recursive=True):
        if any(f"/{model}/" in argument for argument in child.cmdline()):
            child.kill()


async def model_of(service: Service, name: str) -> Any:
    return (await service.client.get(f"/models/{name}")).json()


async def test_a_killed_stub_is_told_and_its_model_loaded_again(settings: Settings, victim: RunningTriton) -> None:
    async with running_api(settings) as service, running_dispatcher(settings):
        running = [await service.send(prompt="[[sim:slow=100]]", parameters={"max_tokens": 200}) for _ in range(3)]

        async def all_run() -> bool:
            return await busy(victim, "tiny") == 3

        await eventually(all_run, "they run")
        kill_stub(victim, "tiny")
        # Triton takes a second over each that it has been given for the dead process, so trials have their turn late.
        context = await service.context("[[sim:slow=1]]")
        later = await asyncio.gather(*(service.send(context) for _ in range(40)))

        async def told() -> Any:
            found = await model_of(service, "tiny")
            return found["set_aside"] and found

        told_of = await eventually(told, "the model is set aside")
        assert (told_of["state"], told_of["servers"]) == ("unavailable", [])
        assert told_of["reason"].startswith(f"Set aside on {victim.grpc_url} since 20")
        assert "The model's process on the server has died." in told_of["reason"]
        (server,) = (await service.client.get("/health/ready")).json()["triton"]
        assert server["ready_models"] == ["embed", "fragile", "slow"]
        assert [each["model"] for each in server["set_aside"]] == ["tiny"]

        async def waits() -> Any:
            waiting = (await service.result(later[-1]))["waiting"]
            return waiting and waiting["reason"] == "model_down" and waiting

        later.append(await service.send(context))
        waiting = await eventually(waits, "tickets tell why they wait")
        assert waiting["detail"].startswith(f"Set aside on {victim.grpc_url} since 20")

        ended = [await service.settled(id_) for id_ in (*running, *later)]
        assert {each["status"] for each in ended} == {"completed"}
        # What was sent to the process has spent an attempt on it at most, what came after the first sign of death none.
        assert [each["attempt_count"] for each in ended[:3]] == [2] * 3
        assert {each["attempt_count"] for each in ended[3:]} <= {1, 2}

        async def answers() -> bool:
            found = await model_of(service, "tiny")
            return found["state"] == "ready" and not found["set_aside"]

        await eventually(answers, "the model is ready again")


async def test_a_killed_model_that_embeds_is_loaded_again(settings: Settings, victim: RunningTriton) -> None:
    async with running_api(settings) as service, running_dispatcher(settings):
        request = {"model": "embed", "input": ["a text"]}
        assert (await service.client.post("/v1/embeddings", json=request)).status_code == 200
        kill_stub(victim, "embed")
        answer = await service.client.post("/v1/embeddings", json=request, timeout=60)
        assert answer.status_code == 200, answer.text

        async def taken_back() -> bool:
            return (await model_of(service, "embed"))["set_aside"] == []

        await eventually(taken_back, "the model is ready again")


async def test_a_dead_engine_is_loaded_again(settings: Settings, victim: RunningTriton) -> None:
    async with running_api(settings) as service, running_dispatcher(settings):
        killer = await service.send(prompt="[[sim:engine-dead]]")

        async def failed_once() -> bool:
            return bool((await service.result(killer))["last_error"])

        await eventually(failed_once, "the engine dies")
        await service.client.post(f"/results/{killer}/cancel")
        ended = [await service.settled(id_) for id_ in [await service.send() for _ in range(10)]]
        assert {(each["status"], each["attempt_count"]) for each in ended} == {("completed", 1)}


async def test_a_process_that_hangs_is_loaded_again(
    make_settings: Callable[..., Settings], victim: RunningTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says that it is dead; as little as a process that was killed in an unlucky moment does."""
    monkeypatch.setattr("app.fleet.quarantine.HUNG_SECONDS", 2.0)
    monkeypatch.setattr("app.fleet.quarantine.TRIAL_SHORTEST_SECONDS", 1.0)
    settings = make_settings(triton_urls=(victim.grpc_url,), stall_seconds=0.7, idle_timeout_seconds=1)
    async with running_api(settings) as service, running_dispatcher(settings):
        cause = await service.send(prompt="[[sim:hang-stub]]")

        async def said() -> bool:
            return "process hangs" in ((await model_of(service, "tiny"))["reason"] or "")

        await eventually(said, "the process is known to hang")
        await service.client.post(f"/results/{cause}/cancel")
        ended = [await service.settled(id_) for id_ in [await service.send() for _ in range(10)]]
        assert {(each["status"], each["attempt_count"]) for each in ended} == {("completed", 1)}


async def test_a_silent_model_that_takes_requests_does_not_hang(
    make_settings: Callable[..., Settings], victim: RunningTriton
) -> None:
    """It is busy, maybe with the work of others, which would end with it."""
    settings = make_settings(triton_urls=(victim.grpc_url,))
    async with open_fleet(settings) as fleet:
        await fleet.refresh()
        lane = fleet.acquire("tiny")
        assert lane is not None
        silence = Silence()
        assert await silence.lasts(lane) < 0.5
        for _ in range(3):
            with pytest.raises(EngineError, match="sent nothing"):
                async for _ in lane.server.engine.run(Request("tiny", "[[sim:hang]]", {}, "silent", 1, 5)):
                    pass
            assert await silence.lasts(lane) < 0.5


async def test_a_model_that_unloaded_itself_is_loaded_again(settings: Settings) -> None:
    """`fragile` has vLLM's health check."""
    async with running_api(settings) as service, running_dispatcher(settings):
        killer = await service.send(prompt="[[sim:engine-dead]]", model="fragile")

        async def failed_once() -> bool:
            return bool((await service.result(killer))["last_error"])

        await eventually(failed_once, "the engine dies")
        await service.client.post(f"/results/{killer}/cancel")
        assert (await service.run(model="fragile"))["status"] == "completed"


async def test_a_prompt_that_kills_its_engine_stops_at_the_cap_and_the_model_comes_back(settings: Settings) -> None:
    settings = settings.model_copy(update={"max_attempts": 3})
    async with running_api(settings) as service, running_dispatcher(settings):
        killer = await service.send(prompt="[[sim:engine-dead]]")
        ended = await service.settled(killer)
        assert (ended["status"], ended["attempt_count"]) == ("failed", 3)
        assert ended["error"]["code"] == "engine_died"
        assert (await service.run())["status"] == "completed"


@pytest.mark.parametrize(("allowed", "text"), [(0, "MODEL_RELOADS_PER_HOUR is 0"), (1, "the next time is ")])
async def test_reloads_are_limited(settings: Settings, allowed: int, text: str) -> None:
    settings = settings.model_copy(update={"model_reloads_per_hour": allowed})
    async with running_api(settings) as service, running_dispatcher(settings):
        for _ in range(allowed + 1):
            killer = await service.send(prompt="[[sim:engine-dead]]")

            async def failed(id_: str = killer) -> bool:
                return bool((await service.result(id_))["last_error"])

            await eventually(failed, "the engine dies")
            await service.client.post(f"/results/{killer}/cancel")

        async def said() -> bool:
            return text in ((await model_of(service, "tiny"))["reason"] or "")

        await eventually(said, "the limit is named")
        waiting = await service.send()
        await asyncio.sleep(1)
        assert (await service.result(waiting))["attempt_count"] == 0


async def test_a_dispatcher_killed_between_unload_and_load_is_replaced(
    settings: Settings, victim: RunningTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left is found in its row alone: the model is not loaded, so no server tells of it."""
    monkeypatch.setattr("app.dispatch.recovery.RELOAD_LEASE_SECONDS", 1.0)
    database = await asyncpg.connect(settings.database_url)
    async with running_api(settings) as service:
        assert (await model_of(service, "tiny"))["state"] == "ready"
        async with TritonControl(victim.grpc_url) as control:
            assert await control.unload("tiny", 5, 10)
        await database.execute(
            "INSERT INTO set_aside_models (server, model, since, reason, dead, seen_at, step, reloader, reload_until)"
            " VALUES ($1, 'tiny', now(), 'It died.', true, now() - interval '10 minutes', 'load', 'gone', now())",
            victim.grpc_url,
        )
        id_ = await service.send()
        async with running_dispatcher(settings):
            assert (await service.settled(id_))["status"] == "completed"
        assert await database.fetchval("SELECT cardinality(reloads) FROM set_aside_models") == 0
    await database.close()


async def test_a_dispatcher_killed_while_it_unloads_is_replaced(
    settings: Settings, victim: RunningTriton, tmp_path: Path
) -> None:
    database = await asyncpg.connect(settings.database_url)
    async with running_api(settings) as service:
        async with Process("app.worker", settings, tmp_path / "one.log") as one:
            await one.says("server is up")
            kill_stub(victim, "tiny")
            id_ = await service.send()
            await one.says("dead model is loaded again")
            one.kill()
        assert (await service.result(id_))["status"] == "pending"
        async with Process("app.worker", settings, tmp_path / "two.log") as two:
            assert (await service.settled(id_, 120))["status"] == "completed"
            assert "step=unload" in two.log.read_text()
        assert await database.fetchval("SELECT cardinality(reloads) FROM set_aside_models") == 1
    await database.close()


async def test_a_server_that_takes_no_such_orders_is_named(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explicit = TritonServer.command

    def fixed(self: TritonServer) -> list[str]:
        kept = [each for each in explicit(self) if not each.startswith(("--load-model", "--model-control-mode"))]
        return [*kept, "--model-control-mode=none"]

    monkeypatch.setattr(TritonServer, "command", fixed)
    shutil.copytree(TEST_MODELS / "tiny", tmp_path / "models" / "tiny")
    server = start_triton(tmp_path / "triton", ("tiny",), tmp_path / "models")
    try:
        settings = make_settings(triton_urls=(server.grpc_url,), stall_seconds=0.7)
        async with running_api(settings) as service, running_dispatcher(settings):
            await service.send(prompt="[[sim:engine-dead]]")

            async def said() -> bool:
                return "loads and unloads no models by request" in ((await model_of(service, "tiny"))["reason"] or "")

            await eventually(said, "the refusal is named")
    finally:
        server.kill()


async def test_two_dispatchers_make_one_reload_and_waste_no_attempts(
    settings: Settings, victim: RunningTriton, tmp_path: Path
) -> None:
    database = await asyncpg.connect(settings.database_url)
    async with (
        running_api(settings) as service,
        Process("app.worker", settings, tmp_path / "one.log") as one,
        Process("app.worker", settings, tmp_path / "two.log") as two,
    ):
        for each in (one, two):
            await each.says("server is up")
        killer = await service.send(prompt="[[sim:engine-dead]]")

        async def failed_once() -> bool:
            return bool((await service.result(killer))["last_error"])

        await eventually(failed_once, "the engine dies")
        await service.client.post(f"/results/{killer}/cancel")
        ended = [await service.settled(id_) for id_ in [await service.send() for _ in range(20)]]
        assert {each["status"] for each in ended} == {"completed"}
        logs = one.log.read_text() + two.log.read_text()
        assert logs.count("dead model is loaded again") == 1
        assert logs.count("model was loaded again") == 1
        assert logs.count("model set aside") == logs.count("model answers again")
        assert await database.fetchval("SELECT cardinality(reloads) FROM set_aside_models") == 1
    await database.close()


async def test_what_no_dispatcher_says_any_longer_is_not_so(settings: Settings) -> None:
    settings = settings.model_copy(update={"model_reloads_per_hour": 0})
    database = await asyncpg.connect(settings.database_url)
    async with running_api(settings) as service:
        async with running_dispatcher(settings):
            await service.send(prompt="[[sim:engine-dead]]")

            async def told() -> bool:
                return bool((await model_of(service, "tiny"))["set_aside"])

            await eventually(told, "the model is set aside")
        await database.execute("UPDATE set_aside_models SET seen_at = seen_at - interval '31 seconds'")

        async def forgotten() -> bool:
            return not (await model_of(service, "tiny"))["set_aside"]

        await eventually(forgotten, "it is forgotten")
    await database.close()
