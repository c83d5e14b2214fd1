"""Streams through the deaths of those who carry them."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.config import Settings
from nvidia_triton.local.settings import free_ports
from tests.conftest import alembic
from tests.postgres_server import RunningPostgres, start_postgres
from tests.service import Process, Service, eventually, running_api, running_dispatcher
from tests.streams.follower import Follower

# Both give the same text each time; `temperature` alone gives another each time.
SEEDED = {"max_tokens": 150, "ignore_eos": True, "seed": 5}
UNSEEDED = {"max_tokens": 150, "ignore_eos": True, "temperature": 1.0}
# A process imports for two seconds of its own, which a busy machine makes many.
STARTING_SECONDS = 60.0
SLOW = "[[sim:slow=20]] Tell me of the sea."


@asynccontextmanager
async def api_process(settings: Settings, log: Path) -> AsyncIterator[tuple[Process, Service]]:
    port = free_ports(1)[0]
    async with (
        Process("app.main", settings, log, API_PORT=str(port)) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client,
    ):

        async def answers() -> bool:
            try:
                return (await client.get("/health/ready")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(answers, "the API is ready")
        yield process, Service(client, settings)


async def test_the_api_is_killed_and_another_goes_on(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    settings = make_settings()
    async with (
        running_api(settings) as survivor,
        running_dispatcher(settings),
        api_process(settings, tmp_path / "api.log") as (process, doomed),
    ):
        ids = [
            await doomed.send(
                prompt=SLOW, parameters={"max_tokens": draw.randint(60, 150), "ignore_eos": True}, stream=True
            )
            for _ in range(6)
        ]
        followers = [Follower(id_) for id_ in ids]
        following = [asyncio.create_task(follower.follow(doomed)) for follower in followers]
        some = draw.randint(1, 20)

        async def begun() -> bool:
            return all(len(follower.seen) >= some for follower in followers)

        await eventually(begun, "all have begun")
        process.kill()
        ends = await asyncio.gather(*following, return_exceptions=True)
        # A short one may have come to its end before.
        assert all(isinstance(end, httpx.TransportError | Follower) for end in ends), ends
        for follower in followers:
            (await follower.follow(survivor)).check()


async def test_a_stopping_api_ends_its_streams_and_another_goes_on(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings()
    async with (
        running_api(settings) as survivor,
        running_dispatcher(settings),
        api_process(settings, tmp_path / "api.log") as (process, leaving),
    ):
        follower = Follower(await leaving.send(prompt=SLOW, parameters=SEEDED, stream=True))
        following = asyncio.create_task(follower.follow(leaving))

        async def begun() -> int:
            return len(follower.seen)

        await eventually(begun, "it has begun")
        process.signal(signal.SIGTERM)
        # The stream ends as it should, only without its last event.
        await following
        assert follower.result is None
        assert await process.ended() in (0, -signal.SIGTERM)
        (await follower.follow(survivor)).check()


@asynccontextmanager
async def interrupted(
    settings: Settings, tmp_path: Path, parameters: dict[str, Any], interrupt: Callable[[Process], None]
) -> AsyncIterator[tuple[Follower, Service]]:
    """A stream whose dispatcher is interrupted in the middle, and another dispatcher that takes over."""
    # The interrupted one's lease runs out soon; that of its successor outlasts a busy machine.
    lasting = settings.model_copy(update={"lease_seconds": 20.0})
    async with (
        running_api(settings) as service,
        Process("app.worker", settings, tmp_path / "dispatcher.log") as first,
    ):
        await first.says("dispatching", STARTING_SECONDS)
        follower = Follower(await service.send(prompt=SLOW, parameters=parameters, stream=True))
        await follower.follow(service, most=10)
        interrupt(first)
        async with running_dispatcher(lasting):
            yield follower, service


async def test_a_killed_dispatchers_stream_goes_on_where_the_text_is_the_same(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings(lease_seconds=1.0)
    async with interrupted(settings, tmp_path, SEEDED, Process.kill) as (follower, service):
        result = (await follower.follow(service)).check()
        assert (result["status"], result["attempt_count"]) == ("completed", 2)
        fresh = await Follower(follower.result_id).follow(service)
        fresh.check()
        assert fresh.seen == follower.seen


async def test_another_text_of_another_attempt_ends_the_stream_and_says_so(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings(lease_seconds=1.0)
    async with interrupted(settings, tmp_path, UNSEEDED, Process.kill) as (follower, service):
        await follower.follow(service)
        assert follower.error is not None
        assert (follower.error["code"], follower.error["status"]) == ("stream_restarted", 409)
        assert follower.result is None
        # Whoever begins anew gets the text of the attempt that counts, and only that.
        anew = await Follower(follower.result_id).follow(service)
        assert anew.check()["attempt_count"] == 2
        # A cut client that saw only the void text is told the same, whenever it asks.
        late = Follower(follower.result_id, seen=follower.seen[:1])
        await late.follow(service)
        assert late.error is not None
        assert late.error["code"] == "stream_restarted"


async def test_a_dispatcher_that_wakes_after_its_lease_adds_nothing(
    make_settings: Callable[..., Settings], tmp_path: Path, rows: Any
) -> None:
    settings = make_settings(lease_seconds=1.0)
    frozen: list[Process] = []

    def freeze(process: Process) -> None:
        process.signal(signal.SIGSTOP)
        frozen.append(process)

    async with interrupted(settings, tmp_path, SEEDED, freeze) as (follower, service):
        await follower.follow(service, most=10)
        frozen[0].signal(signal.SIGCONT)
        result = (await follower.follow(service)).check()
        assert (result["status"], result["attempt_count"]) == ("completed", 2)
        attempts = [row[0] for row in await rows.fetch("SELECT attempt FROM result_events ORDER BY sequence")]
        assert set(attempts) == {1, 2}
        assert attempts == sorted(attempts)
        numbers = [row[0] for row in await rows.fetch("SELECT sequence FROM result_events ORDER BY sequence")]
        assert numbers == list(range(len(numbers)))


async def test_a_frozen_postgres_delays_streams_and_takes_nothing(
    make_settings: Callable[..., Settings], postgres: RunningPostgres
) -> None:
    settings = make_settings(lease_seconds=10.0)
    async with running_api(settings) as service, running_dispatcher(settings):
        followers = [Follower(await service.send(prompt=SLOW, parameters=SEEDED, stream=True)) for _ in range(3)]
        following = [asyncio.create_task(follower.follow(service)) for follower in followers]

        async def begun() -> bool:
            return all(len(follower.seen) >= 5 for follower in followers)

        await eventually(begun, "all have begun")
        backends = [postgres.pid, *(child.pid for child in psutil.Process(postgres.pid).children(recursive=True))]
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.0)
        for pid in backends:
            os.kill(pid, signal.SIGCONT)
        await asyncio.gather(*following)
        for follower in followers:
            assert follower.check()["attempt_count"] == 1


@pytest.mark.parametrize("away", [0.0, 4.0], ids=["shortly", "until the generations have ended"])
async def test_a_killed_postgres_comes_back_and_streams_go_on(
    make_settings: Callable[..., Settings], tmp_path: Path, away: float
) -> None:
    """What it forgets of the events, for they do not wait for the disk, is written again before anything is settled."""
    postgres = start_postgres(tmp_path / "postgres", fsync=True, settings={"wal_writer_delay": "10s"})
    try:
        assert alembic(postgres.url, "upgrade", "head").returncode == 0
        settings = make_settings(database_url=postgres.url, lease_seconds=20.0)
        async with running_api(settings) as service, running_dispatcher(settings):
            followers = [Follower(await service.send(prompt=SLOW, parameters=SEEDED, stream=True)) for _ in range(3)]
            following = [asyncio.create_task(follower.follow(service)) for follower in followers]

            async def begun() -> bool:
                return all(len(follower.seen) >= 30 for follower in followers)

            await eventually(begun, "all have begun")
            postgres.kill()
            await asyncio.sleep(away)
            await asyncio.to_thread(postgres.start)
            await asyncio.gather(*following)
            for follower in followers:
                assert follower.check()["attempt_count"] == 1
                fresh = await Follower(follower.result_id).follow(service)
                assert fresh.seen == follower.seen
    finally:
        postgres.stop()
