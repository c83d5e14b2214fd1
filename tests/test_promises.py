"""Each promise of docs/architecture.md, kept under fire. Processes are real and are really killed."""

import asyncio
import random
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from app.config import Settings
from app.db.ids import uuid7
from nvidia_triton.local.settings import free_ports
from tests.conftest import alembic, with_database
from tests.engine import busy, generated
from tests.postgres_server import RunningPostgres, start_postgres
from tests.servers import RunningTriton, start_triton
from tests.service import Process, Service, eventually, running_api, running_dispatcher


async def test_202_means_committed(make_settings: Callable[..., Settings], rows: Any, tmp_path: Path) -> None:
    """SIGKILL the API under load at random moments: every acknowledged id exists afterwards."""
    seed = random.randrange(1 << 32)
    draw = random.Random(seed)
    (port,) = free_ports(1)
    settings = make_settings(api_port=port)
    context = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", context)
    await rows.execute("INSERT INTO models (name, version) VALUES ('tiny', '1')")
    acknowledged: list[str] = []

    async def load(client: httpx.AsyncClient) -> None:
        while True:
            try:
                answer = await client.post(f"/models/send/tiny/{context}")
            except httpx.TransportError:
                await asyncio.sleep(0.01)
                continue
            if answer.status_code == 202:
                acknowledged.append(answer.json()["result_id"])

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        users = [asyncio.create_task(load(client)) for _ in range(16)]
        for _ in range(3):
            before = len(acknowledged)
            async with Process("app.main", settings, tmp_path / "api.log") as api:

                async def served(before: int = before) -> bool:
                    return len(acknowledged) > before + 20

                await eventually(served, "the API takes tickets")
                await asyncio.sleep(draw.random() * 0.5)
                api.kill()
        for user in users:
            user.cancel()
        await asyncio.gather(*users, return_exceptions=True)
    stored = {str(row[0]) for row in await rows.fetch("SELECT id FROM results")}
    assert set(acknowledged) <= stored, f"seed {seed}"
    assert len(acknowledged) == len(set(acknowledged))


async def test_at_least_once_run_exactly_one_visible_outcome(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """A dispatcher frozen past its lease wakes up after another finished: it changes no row."""
    settings = make_settings(lease_seconds=1.0)
    async with (
        running_api(settings) as service,
        Process("app.worker", settings, tmp_path / "frozen.log") as frozen,
    ):
        ids = [
            await service.send(model="slow", parameters={"max_tokens": 20, "ignore_eos": True, "seed": n})
            for n in range(5)
        ]

        async def all_run() -> bool:
            return all([(await service.result(id_))["phase"] == "running" for id_ in ids])

        await eventually(all_run, "all run")
        frozen.signal(signal.SIGSTOP)
        async with running_dispatcher(settings):
            finished = [await service.settled(id_) for id_ in ids]
            frozen.signal(signal.SIGCONT)
            await frozen.says(" lost")
            await asyncio.sleep(1)
        assert [await service.result(id_) for id_ in ids] == finished
    for result in finished:
        assert result["status"] == "completed"
        outcomes = [attempt["outcome"] for attempt in await ledger(settings, result["id"])]
        assert outcomes == ["lease_lost", "completed"]


async def ledger(settings: Settings, id_: str) -> list[Any]:
    connection = await asyncpg.connect(settings.database_url)
    found = await connection.fetch("SELECT * FROM attempts WHERE result_id = $1 ORDER BY number", id_)
    await connection.close()
    return list(found)


async def test_a_dead_dispatchers_work_runs_again_within_two_leases(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings(lease_seconds=2.0)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(running_api(settings))
        victim = await stack.enter_async_context(Process("app.worker", settings, tmp_path / "victim.log"))
        context = await service.context()
        ids = [
            await service.send(context, model="slow", parameters={"max_tokens": 600, "ignore_eos": True})
            for _ in range(10)
        ]

        async def all_run() -> bool:
            return all([(await service.result(id_))["phase"] == "running" for id_ in ids])

        await eventually(all_run, "all run")
        await stack.enter_async_context(running_dispatcher(settings))
        victim.kill()
        killed = time.monotonic()

        async def all_run_again() -> bool:
            return all([(await service.result(id_))["attempt_count"] == 2 for id_ in ids])

        await eventually(all_run_again, "all run again", 2 * settings.lease_seconds + 1)
        assert time.monotonic() - killed < 2 * settings.lease_seconds + 1
        for id_ in ids:
            await service.client.post(f"/results/{id_}/cancel")


async def test_a_long_generation_is_never_run_twice_while_its_dispatcher_lives(
    make_settings: Callable[..., Settings],
) -> None:
    """A generation of more than five leases, with a second dispatcher looking for work."""
    settings = make_settings(lease_seconds=0.6)
    async with running_api(settings) as service, running_dispatcher(settings), running_dispatcher(settings):
        result = await service.run("[[sim:slow=20]]", model="slow", max_tokens=170, ignore_eos=True)
    assert (result["status"], result["attempt_count"]) == ("completed", 1)


async def test_cancel_frees_the_engine(service: Service, triton: RunningTriton) -> None:
    context = await service.context()
    ids = await asyncio.gather(
        *(service.send(context, model="slow", parameters={"max_tokens": 4000, "ignore_eos": True}) for _ in range(200))
    )

    async def engine_is_full() -> bool:
        return await busy(triton, "slow") == 64

    await eventually(engine_is_full, "the engine is full")
    await asyncio.gather(*(service.client.post(f"/results/{id_}/cancel") for id_ in ids))
    results = [await service.settled(id_) for id_ in ids]
    assert {result["error"]["code"] for result in results} == {"cancelled"}

    async def engine_is_free() -> bool:
        return await busy(triton, "slow") == 0

    await eventually(engine_is_free, "the engine is free", 3)


async def test_cancel_survives_lost_notify(
    make_settings: Callable[..., Settings], database_url: str, triton: RunningTriton
) -> None:
    settings = make_settings(lease_seconds=60.0)
    async with running_api(settings) as service, running_dispatcher(settings):
        before = await generated(triton, "slow")
        id_ = await service.send(model="slow", parameters={"max_tokens": 4000, "ignore_eos": True}, stream=True)

        async def under_way() -> bool:
            return await generated(triton, "slow") > before + 3

        await eventually(under_way, "tokens flow")
        # Asked for without a word to anyone, as when the notification is lost.
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE results SET cancel_requested_at = now() WHERE id = $1", id_)
        await connection.close()
        result = await service.settled(id_, 10)
    assert result["error"]["code"] == "cancelled"
    assert result["output"]


async def test_no_server_tickets_wait_and_none_fails(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    server = start_triton(tmp_path, ("tiny",))
    try:
        settings = make_settings(triton_urls=(server.grpc_url,))
        async with running_api(settings) as service, running_dispatcher(settings):
            assert (await service.run(max_tokens=3))["status"] == "completed"
            await asyncio.to_thread(server.stop)
            context = await service.context()
            ids = [await service.send(context) for _ in range(20)]
            await asyncio.sleep(2)
            waiting = [await service.result(id_) for id_ in ids]
            assert {(each["status"], each["attempt_count"]) for each in waiting} == {("pending", 0)}
            (model,) = (await service.client.get("/models/")).json()
            assert (model["name"], model["state"], model["servers"]) == ("tiny", "unavailable", [])
            assert model["reason"]
            assert (await service.client.get("/health/ready")).status_code == 200
            await asyncio.to_thread(server.start)
            results = [await service.settled(id_) for id_ in ids]
            assert {(each["status"], each["attempt_count"]) for each in results} == {("completed", 1)}
    finally:
        server.kill()


async def test_postgres_restarts_and_nothing_is_lost(
    triton: RunningTriton, tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    postgres: RunningPostgres = start_postgres(tmp_path / "data", fsync=True)
    try:
        connection = await asyncpg.connect(postgres.url)
        await connection.execute("CREATE DATABASE restarted")
        await connection.close()
        url = with_database(postgres.url, "restarted")
        assert alembic(url, "upgrade", "head").returncode == 0
        settings = make_settings(database_url=url)
        acknowledged: list[str] = []
        refused: set[int] = set()
        async with running_api(settings) as service, running_dispatcher(settings):
            context = await service.context()

            async def load() -> None:
                while True:
                    answer = await service.client.post(f"/models/send/tiny/{context}")
                    if answer.status_code == 202:
                        acknowledged.append(answer.json()["result_id"])
                    else:
                        refused.add(answer.status_code)
                        assert answer.json()["code"] == "database_unavailable"
                        assert answer.headers["retry-after"]
                    await asyncio.sleep(0.01)

            users = [asyncio.create_task(load()) for _ in range(4)]
            for end in (postgres.stop, postgres.kill):
                before = len(acknowledged)
                await asyncio.sleep(0.5)
                await asyncio.to_thread(end)
                await asyncio.sleep(0.5)
                await asyncio.to_thread(postgres.start)

                async def taken(before: int = before) -> bool:
                    return len(acknowledged) > before + 10

                await eventually(taken, "tickets are taken again")
            for user in users:
                user.cancel()
            ended = await asyncio.gather(*users, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
            results = [await service.settled(id_, 40) for id_ in acknowledged]
        assert {result["status"] for result in results} == {"completed"}
        assert refused == {503}
    finally:
        postgres.stop()
