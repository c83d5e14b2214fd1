"""The dispatcher at work, with servers that fail on demand."""

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from app.config import Settings
from app.dispatch.run import Run
from app.engines.base import Endpoint, Request
from app.engines.registry import open_engine
from tests.engine import busy, generated
from tests.postgres_server import RunningPostgres
from tests.servers import RunningTriton, start_triton
from tests.service import Service, eventually, running_api, running_dispatcher

# Of tests/models/tiny.
TINY_SEQUENCES = 64


async def test_work_is_taken_up_without_any_notification(
    make_settings: Callable[..., Settings], database_url: str
) -> None:
    """NOTIFY only wakes: with every listening connection cut for good, polling alone makes progress."""
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings):
        connection = await asyncpg.connect(database_url)

        async def cut() -> None:
            while True:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                )
                await asyncio.sleep(0.05)

        cutting = asyncio.create_task(cut())
        try:
            results = await asyncio.gather(*(service.run(max_tokens=5) for _ in range(10)))
        finally:
            cutting.cancel()
            await asyncio.gather(cutting, return_exceptions=True)
            await connection.close()
    assert {result["status"] for result in results} == {"completed"}


async def test_what_a_run_held_is_given_back_without_the_collector(service: Service) -> None:
    """A full pass of the collector stops every run under way, the longer the more there is to find."""
    await service.run(max_tokens=2)
    gc.collect()
    gc.disable()
    try:
        await asyncio.gather(*(service.run(max_tokens=2) for _ in range(5)))

        async def gone() -> bool:
            return not any(type(each) is Run for each in gc.get_objects())

        await eventually(gone, "the runs are gone")
    finally:
        gc.enable()


async def test_a_retryable_fault_is_tried_again_after_a_pause(service: Service) -> None:
    id_ = await service.send(prompt="[[sim:error=a passing fault]]")

    async def failed_once() -> Any:
        result = await service.result(id_)
        return result if result["last_error"] else None

    waiting = await eventually(failed_once, "the first attempt fails")
    assert (waiting["status"], waiting["phase"], waiting["error"]) == ("pending", "queued", None)
    assert waiting["last_error"]["code"] == "engine_error"
    assert "a passing fault" in waiting["last_error"]["message"]


async def test_a_fault_that_stays_ends_at_the_cap_with_every_attempt_on_record(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings(max_attempts=2, idle_timeout_seconds=0.5)
    async with running_api(settings) as service, running_dispatcher(settings):
        result = await service.run("[[sim:hang]]", stream=True)
        assert (result["status"], result["attempt_count"]) == ("failed", 2)
        assert result["error"]["code"] == "idle_timeout"
        assert result["error"]["message"].endswith("for 0.5 seconds. This was the last of 2 attempts.")
        attempts = await service.attempts(result["id"])
        assert [each["outcome"] for each in attempts] == ["retried", "failed"]
        assert all("sent nothing" in each["error"]["message"] for each in attempts)


async def test_no_more_run_at_once_than_the_model_may(make_settings: Callable[..., Settings], triton: Any) -> None:
    settings = make_settings(model_concurrency=4)
    async with running_api(settings) as service, running_dispatcher(settings):
        context = await service.context("[[sim:slow=20]]")
        for _ in range(12):
            await service.send(context, model="slow", parameters={"max_tokens": 60, "ignore_eos": True})

        async def four_run() -> bool:
            return await busy(triton, "slow") == 4

        await eventually(four_run, "four run")
        seen = []

        async def all_done() -> bool:
            seen.append(await busy(triton, "slow"))
            pending = await service.client.get("/results/?status=pending")
            return not pending.json()

        await eventually(all_done, "all settle")
        assert max(seen) <= 4
        completed = (await service.client.get("/results/?status=completed")).json()
        assert [result["attempt_count"] for result in completed] == [1] * 12


async def test_higher_priorities_are_served_first(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(model_concurrency=1)
    async with running_api(settings) as service:
        context = await service.context("[[sim:tokens=2]]")
        low = [await service.send(context, priority=-5) for _ in range(3)]
        high = [await service.send(context, priority=5) for _ in range(3)]
        async with running_dispatcher(settings):
            done = [await service.settled(id_) for id_ in [*low, *high]]
    order = [result["id"] for result in sorted(done, key=lambda result: result["started_at"])]
    assert order == high + low


async def test_a_model_that_fails_to_answer_leaves_others_alone(service: Service) -> None:
    stuck = await service.send(prompt="[[sim:hang]]")
    assert (await service.run(model="noop", max_tokens=3))["status"] == "completed"
    await service.client.post(f"/results/{stuck}/cancel")
    assert (await service.settled(stuck))["error"]["code"] == "cancelled"


async def test_an_engine_that_stays_silent_is_given_up(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(idle_timeout_seconds=0.5, max_attempts=1)
    async with running_api(settings) as service, running_dispatcher(settings):
        result = await service.run("[[sim:hang]]", stream=True)
    assert result["error"]["code"] == "idle_timeout"


async def test_one_generation_of_a_busy_model_shows_that_its_engine_lives(
    make_settings: Callable[..., Settings], triton: Any
) -> None:
    """Nobody follows any of them: one is streamed all the same, so a cancel keeps that one's text."""
    settings = make_settings()
    async with running_api(settings) as service, running_dispatcher(settings):
        parameters = {"max_tokens": 2000, "ignore_eos": True}
        ids = [await service.send(model="slow", parameters=parameters) for _ in range(4)]
        before = await generated(triton, "slow")

        async def all_run() -> bool:
            return await busy(triton, "slow") == 4 and await generated(triton, "slow") > before + 20

        await eventually(all_run, "all run")
        for id_ in ids:
            await service.client.post(f"/results/{id_}/cancel")
        results = [await service.settled(id_) for id_ in ids]
    assert {result["error"]["code"] for result in results} == {"cancelled"}
    assert len([result for result in results if result["output"]]) == 1


async def test_an_attempt_may_not_run_longer_than_its_limit(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(run_timeout_seconds=0.5, max_attempts=1)
    async with running_api(settings) as service, running_dispatcher(settings):
        result = await service.run("[[sim:slow=50]]", stream=True, max_tokens=200, ignore_eos=True)
    assert result["error"]["code"] == "run_timeout"
    assert result["output"]


async def test_stopping_lets_runs_finish_and_then_gives_back_the_rest(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(drain_seconds=1.0)
    async with running_api(settings) as service:
        async with running_dispatcher(settings):
            quick = await service.send(model="slow", parameters={"max_tokens": 10, "ignore_eos": True})
            long = await service.send(model="slow", parameters={"max_tokens": 3000, "ignore_eos": True})

            async def both_run() -> bool:
                return {(await service.result(id_))["phase"] for id_ in (quick, long)} == {"running"}

            await eventually(both_run, "both run")
        done, back = await service.result(quick), await service.result(long)
        assert done["status"] == "completed"
        assert (back["status"], back["phase"], back["attempt_count"]) == ("pending", "queued", 0)


async def test_postgres_away_for_longer_than_the_lease_costs_no_attempt(
    make_settings: Callable[..., Settings], postgres: RunningPostgres
) -> None:
    """Every backend is frozen past the lease, then goes on: the runs that were under way are not started anew."""
    settings = make_settings(lease_seconds=1.0)
    async with running_api(settings) as service, running_dispatcher(settings):
        context = await service.context("[[sim:slow=40]]")
        ids = [await service.send(context, model="slow", parameters={"max_tokens": 120}) for _ in range(5)]

        async def all_run() -> bool:
            return all([(await service.result(id_))["phase"] == "running" for id_ in ids])

        await eventually(all_run, "all run")
        backends = [postgres.pid, *(child.pid for child in psutil.Process(postgres.pid).children(recursive=True))]
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(2.5)
        for pid in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        results = [await service.settled(id_, 30) for id_ in ids]
    assert {(result["status"], result["attempt_count"]) for result in results} == {("completed", 1)}


async def test_renewals_and_settles_of_thousands_do_not_wait_for_each_other(
    make_settings: Callable[..., Settings],
) -> None:
    """Leases so short that renewals and settles meet all the time, on the same rows in different orders."""
    settings = make_settings(lease_seconds=0.3, model_concurrency=200)
    async with running_api(settings) as service:
        context = await service.context()
        connection = await asyncpg.connect(settings.database_url)
        await connection.execute(
            "INSERT INTO results (id, context_id, model, parameters) SELECT uuidv7(), $1::uuid, 'noop',"
            " '{\"max_tokens\": 1}' FROM generate_series(1, 3000)",
            context,
        )
        async with running_dispatcher(settings):

            async def done() -> bool:
                return not await connection.fetchval("SELECT count(*) FROM results WHERE status = 'pending'")

            await eventually(done, "all settle", 60)
        assert await connection.fetchval("SELECT count(*) FROM results WHERE status = 'completed'") == 3000
        assert await connection.fetchval("SELECT count(*) FROM attempts WHERE outcome = 'completed'") == 3000
        await connection.close()


@pytest.fixture
def victim(tmp_path: Path) -> Any:
    server = start_triton(tmp_path, ("tiny", "fragile"))
    yield server
    server.kill()


async def test_a_prompt_that_kills_its_server_stops_at_the_cap(
    make_settings: Callable[..., Settings], victim: RunningTriton
) -> None:
    settings = make_settings(triton_urls=(victim.grpc_url,), max_attempts=2)
    async with running_api(settings) as service, running_dispatcher(settings):
        id_ = await service.send(prompt="[[sim:kill-server]]")
        for last in (False, True):

            async def down() -> bool:
                return not victim.running

            await eventually(down, "the prompt kills the server")
            victim.kill()
            # The first time the prompt kills it again, maybe before this process has seen it ready.
            await asyncio.to_thread(victim.start, wait=last)
        result = await service.settled(id_)
        assert (result["status"], result["attempt_count"]) == ("failed", 2)
        assert result["error"]["code"] == "server_died"
        assert (await service.run("after it"))["status"] == "completed"


async def test_an_engine_that_died_and_was_restarted_finishes_the_work(
    make_settings: Callable[..., Settings], victim: RunningTriton
) -> None:
    settings = make_settings(triton_urls=(victim.grpc_url,))
    async with running_api(settings) as service, running_dispatcher(settings):
        first = await service.send(prompt="[[sim:slow=20]]", model="fragile", parameters={"max_tokens": 100})
        killer = await service.send(prompt="[[sim:engine-dead]]", model="fragile")

        async def both_failed_once() -> bool:
            return all([(await service.result(id_))["last_error"] for id_ in (first, killer)])

        await eventually(both_failed_once, "the engine dies under both")
        await service.client.post(f"/results/{killer}/cancel")
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(victim.start)
        assert (await service.settled(first, 40))["status"] == "completed"


async def test_a_dead_backend_process_is_set_aside_and_taken_back_when_it_works_again(
    make_settings: Callable[..., Settings], victim: RunningTriton
) -> None:
    """The stub dies: readiness stays 200 and requests in flight hang. The other model goes on."""
    settings = make_settings(triton_urls=(victim.grpc_url,), stall_seconds=0.7)
    async with running_api(settings) as service, running_dispatcher(settings):
        hanging = await service.send(prompt="[[sim:slow=50]]", parameters={"max_tokens": 200, "ignore_eos": True})

        async def runs() -> bool:
            return (await service.result(hanging))["phase"] == "running"

        await eventually(runs, "it runs")
        killer = await service.send(prompt="[[sim:die-stub]]")

        async def given_up() -> Any:
            states = [await service.result(id_) for id_ in (hanging, killer)]
            return all(state["phase"] == "queued" and state["last_error"] for state in states) and states

        # One that hangs has spent its attempt, one that is refused because the process is dead already has not.
        states = await eventually(given_up, "the hanging runs are given up")
        assert {state["last_error"]["code"] for state in states} <= {"server_stuck", "model_process_died"}
        assert (await service.run(model="fragile", max_tokens=3))["status"] == "completed"
        before = (await service.result(hanging))["attempt_count"]
        waiting = await service.send()
        await asyncio.sleep(2)
        assert (await service.result(waiting))["attempt_count"] == 0
        assert (await service.result(hanging))["attempt_count"] == before
        await service.client.post(f"/results/{killer}/cancel")
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(victim.start)
        for id_ in (hanging, waiting):
            assert (await service.settled(id_, 40))["status"] == "completed"


async def test_a_silent_model_is_set_aside_although_its_runs_time_out_and_begin_anew(
    make_settings: Callable[..., Settings], victim: RunningTriton
) -> None:
    """The trial takes longer than the runs are given; none of them is a sign of life."""
    settings = make_settings(
        triton_urls=(victim.grpc_url,),
        stall_seconds=3.0,
        idle_timeout_seconds=0.5,
        max_attempts=1000,
        model_concurrency=2,
    )
    async with running_api(settings) as service, AsyncExitStack() as stack:
        # Somebody else takes all that the engine has.
        engine = open_engine(Endpoint("triton", victim.grpc_url))
        stack.push_async_callback(engine.close)

        async def hang(number: int) -> None:
            async for _ in engine.run(Request("tiny", "[[sim:hang]]", {"max_tokens": 1}, f"hang-{number}", 300, 300)):
                pass

        hanging = [asyncio.create_task(hang(number)) for number in range(TINY_SEQUENCES)]

        async def full() -> bool:
            return await busy(victim, "tiny") == TINY_SEQUENCES

        await eventually(full, "the engine is full")
        await stack.enter_async_context(running_dispatcher(settings))
        ids = [await service.send() for _ in range(100)]

        async def set_aside() -> bool:
            waiting = (await service.result(ids[-1]))["waiting"]
            return bool(waiting) and waiting["reason"] == "model_down"

        await eventually(set_aside, "the model is set aside", 120)
        # There were always some that could begin.
        assert (await service.result(ids[-1]))["attempt_count"] == 0
        for each in hanging:
            each.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        assert {(await service.settled(id_))["status"] for id_ in ids} == {"completed"}


async def test_a_frozen_servers_runs_are_given_up_and_run_elsewhere(
    make_settings: Callable[..., Settings], victim: RunningTriton, tmp_path: Path
) -> None:
    other = start_triton(tmp_path / "other", ("tiny",))
    try:
        settings = make_settings(triton_urls=(victim.grpc_url, other.grpc_url), stall_seconds=4.0)
        async with running_api(settings) as service, running_dispatcher(settings):

            async def both_seen() -> bool:
                done = await asyncio.gather(*(service.run(max_tokens=1) for _ in range(4)))
                return len({(await service.attempts(each["id"]))[0]["server"] for each in done}) == 2

            await eventually(both_seen, "the dispatcher uses both servers")
            # Long enough that none has ended when the last one begins, on a machine that has other work.
            context = await service.context("[[sim:slow=50]]")
            parameters = {"max_tokens": 200, "ignore_eos": True}
            ids = await asyncio.gather(*(service.send(context, parameters=parameters) for _ in range(8)))

            async def on_both() -> float:
                there, elsewhere = await busy(victim, "tiny"), await busy(other, "tiny")
                return there if there + elsewhere == 8 and elsewhere else 0

            stuck = int(await eventually(on_both, "both servers work"))
            victim.freeze()
            results = [await service.settled(id_, 120) for id_ in ids]
            assert {result["status"] for result in results} == {"completed"}
            assert sorted(result["attempt_count"] for result in results) == [1] * (8 - stuck) + [2] * stuck
            moved = next(result for result in results if result["attempt_count"] == 2)
            first, second = await service.attempts(moved["id"])
            assert (first["server"], second["server"]) == (victim.grpc_url, other.grpc_url)
            assert first["error"]["code"] == "server_stuck"
    finally:
        victim.thaw()
        other.kill()
