"""Servers that join, leave, and hide behind a connection that breaks, under load and without a restart."""

import asyncio
import json
import shutil
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config import Settings
from nvidia_triton.local.settings import ROOT
from tests.engine import busy
from tests.local.conftest import Checkout, copy_runner
from tests.servers import RunningTriton, start_triton
from tests.service import Process, Service, eventually, running_api

HOST = "127.0.0.1"
USERS = 4
# Seconds between two tickets of a user.
PACE = 0.03


class Forwarder:
    """A tunnel's near end: forwards connections to `target` until it is told to misbehave."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._port = 0
        self._flowing = asyncio.Event()
        self._turning_away = False
        self._listener: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"{HOST}:{self._port}"

    async def restore(self) -> None:
        """All is well; connections that were frozen go on."""
        self._turning_away = False
        self._flowing.set()
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, HOST, self._port)
            self._port = self._listener.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """The process is gone: connections are reset, the port is closed."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._reset()

    def freeze(self) -> None:
        """The far end is gone without a word: connections are accepted, and nothing goes through."""
        self._flowing.clear()

    def turn_away(self) -> None:
        """The far end refuses: connections are accepted and closed at once."""
        self._turning_away = True
        self._reset()

    def _reset(self) -> None:
        for end in self._ends:
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._turning_away:
            writer.close()
            return
        self._ends.add(writer)
        try:
            await self._flowing.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._ends.add(far_writer)
            try:
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
            finally:
                self._ends.discard(far_writer)
                far_writer.close()
        except OSError:
            pass
        finally:
            self._ends.discard(writer)
            writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            await self._flowing.wait()
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError


@asynccontextmanager
async def forwarding(target: str) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(target)
    await forwarder.restore()
    try:
        yield forwarder
    finally:
        await forwarder.cut()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path / "other", ("tiny", "slow"))
    yield server
    server.kill()


def write(file: Path, *urls: str) -> None:
    """As its writers do: the old file or the new one is there at any moment."""
    entries = [{"url": url, "name": f"server-{number}"} for number, url in enumerate(urls)]
    file.with_suffix(".tmp").write_text(json.dumps({"servers": entries}))
    file.with_suffix(".tmp").replace(file)


class Load:
    """Users that send tickets one after the other until they are stopped."""

    def __init__(self, service: Service, rows: Any) -> None:
        self.service = service
        self.rows = rows
        self.ids: list[str] = []
        self.context = ""

    async def send(self, max_tokens: int) -> str:
        parameters = {"max_tokens": max_tokens, "ignore_eos": True}
        id_ = await self.service.send(self.context, model="slow", parameters=parameters)
        self.ids.append(id_)
        return id_

    async def _keep_sending(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.send(max_tokens=25)
            await asyncio.sleep(PACE)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """`context` makes the engine take 15 ms for each token."""
        self.context = await self.service.context("[[sim:slow=15]]")
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as users:
            for _ in range(USERS):
                users.create_task(self._keep_sending(stop))
            try:
                yield
            finally:
                stop.set()

    async def completed(self) -> int:
        return int(await self.rows.fetchval("SELECT count(*) FROM results WHERE status = 'completed'"))

    async def moves(self, more: int) -> None:
        enough = await self.completed() + more

        async def enough_are() -> bool:
            return await self.completed() >= enough

        await eventually(enough_are, f"{more} more complete", 120)

    async def next_claim(self) -> datetime:
        """When a ticket of now is claimed: what an earlier claim holds for a server that has left has then started."""
        id_ = await self.send(max_tokens=1)
        await self.service.settled(id_, 120)
        moment: datetime = await self.rows.fetchval("SELECT max(started_at) FROM attempts WHERE result_id = $1", id_)
        return moment

    async def starts(self, least: int, since: datetime) -> None:
        async def enough_have() -> bool:
            started = await self.rows.fetchval("SELECT count(*) FROM attempts WHERE started_at > $1", since)
            return int(started) >= least

        await eventually(enough_have, f"{least} attempts started after {since} have ended", 120)

    async def in_flight(self, least: int) -> None:
        async def there_are() -> bool:
            return int(await self.rows.fetchval(HELD)) >= least

        await eventually(there_are, f"{least} run")

    async def all_complete_once(self) -> None:
        async def all_settled() -> bool:
            return not await self.rows.fetchval("SELECT count(*) FROM results WHERE status = 'pending'")

        await eventually(all_settled, "all are settled", 120, pause=0.1)
        found = {str(row["id"]): row["status"] for row in await self.rows.fetch("SELECT id, status FROM results")}
        assert found == dict.fromkeys(self.ids, "completed")
        twice = await self.rows.fetch(
            "SELECT result_id FROM attempts WHERE outcome = 'completed' GROUP BY 1 HAVING count(*) > 1"
        )
        assert twice == []


HELD = "SELECT count(*) FROM results WHERE status = 'pending' AND attempt_token IS NOT NULL"


async def servers_seen(service: Service) -> dict[str, bool]:
    ready = (await service.client.get("/health/ready")).json()
    return {server["name"]: server["up"] for server in ready["triton"]}


async def seen(service: Service, expected: dict[str, bool]) -> None:
    async def as_expected() -> bool:
        return await servers_seen(service) == expected

    try:
        await eventually(as_expected, f"the API sees {expected}", 60)
    except AssertionError as late:
        late.add_note((await service.client.get("/health/ready")).text)
        raise


async def test_a_tunnel_that_breaks_costs_no_ticket(
    make_settings: Callable[..., Settings], triton: RunningTriton, rows: Any, tmp_path: Path
) -> None:
    """Cut, refused at the far end, frozen and cut, frozen and resumed, with a run's own timeouts as by default."""
    file = tmp_path / "servers.json"
    settings = make_settings(triton_urls=(), triton_servers_file=file, stall_seconds=1.0)
    async with (
        forwarding(triton.grpc_url) as tunnel,
        running_api(settings) as service,
        Process("app.worker", settings, tmp_path / "dispatcher.log", TRITON_URLS="none") as dispatcher,
    ):
        await dispatcher.says("dispatching")
        assert await servers_seen(service) == {}
        write(file, tunnel.url)
        await seen(service, {"server-0": True})
        load = Load(service, rows)
        async with load.running():
            await load.moves(30)
            await load.in_flight(5)
            await tunnel.cut()
            await seen(service, {"server-0": False})
            await nothing_runs(rows)
            await tunnel.restore()
            await load.moves(60)

            tunnel.turn_away()
            await seen(service, {"server-0": False})
            await nothing_runs(rows)
            spent = await rows.fetchval("SELECT count(*) FROM attempts")
            await asyncio.sleep(2 * settings.probe_seconds)
            assert await rows.fetchval("SELECT count(*) FROM attempts") == spent
            await tunnel.restore()
            await load.moves(60)

            for cut_after in (True, False):
                await load.in_flight(5)
                tunnel.freeze()
                frozen_at = time.monotonic()
                await seen(service, {"server-0": False})
                await nothing_runs(rows)
                # A probe waits 3 s for its answer; an engine may be silent for two minutes, a run last half an hour.
                assert time.monotonic() - frozen_at < 10
                if cut_after:
                    await tunnel.cut()
                await tunnel.restore()
                await load.moves(60)
        assert len(load.ids) > 300
        await load.all_complete_once()
    codes = {row[0] for row in await rows.fetch("SELECT DISTINCT error_code FROM attempts WHERE outcome = 'retried'")}
    assert codes == {"server_died", "server_stuck"}
    assert await rows.fetchval("SELECT max(attempt_count) FROM results") <= settings.max_attempts


async def nothing_runs(rows: Any) -> None:
    """What was in flight is back in the queue, as runs are not started meanwhile."""

    async def idle() -> bool:
        return not await rows.fetchval(HELD)

    await eventually(idle, "all are given back")


async def test_a_server_taken_from_the_file_gets_nothing_more(
    make_settings: Callable[..., Settings], triton: RunningTriton, other: RunningTriton, rows: Any, tmp_path: Path
) -> None:
    file = tmp_path / "servers.json"
    write(file, triton.grpc_url, other.grpc_url)
    settings = make_settings(triton_urls=(), triton_servers_file=file)
    async with (
        running_api(settings) as service,
        Process("app.worker", settings, tmp_path / "dispatcher.log", TRITON_URLS="none") as dispatcher,
    ):
        await seen(service, {"server-0": True, "server-1": True})

        async def have_left(servers: int) -> None:
            async def noticed() -> bool:
                return dispatcher.log.read_text().count("server leaves") == servers

            await eventually(noticed, f"the dispatcher has seen {servers} leave")

        load = Load(service, rows)
        async with load.running():
            await load.moves(40)

            # Long enough that some of them run when their server leaves, however slow this machine is.
            await asyncio.gather(*(load.send(max_tokens=800) for _ in range(12)))

            async def both_busy() -> bool:
                return await busy(triton, "slow") >= 3 and await busy(other, "slow") >= 3

            await eventually(both_busy, "both work")
            write(file, triton.grpc_url)
            removed_at = await rows.fetchval("SELECT clock_timestamp()")
            await seen(service, {"server-0": True})
            await have_left(1)
            alone_from = await load.next_claim()
            await load.starts(60, since=alone_from)

            # It comes back, and the other one goes.
            alone_until = await rows.fetchval("SELECT clock_timestamp()")
            write(file, other.grpc_url)
            await have_left(2)
            swapped_at = await load.next_claim()
            await load.starts(60, since=swapped_at)
        await load.all_complete_once()

        model = (await service.client.get("/models/slow")).json()
        assert model["servers"] == list(model["statistics"]) == [other.grpc_url]
        write(file)
        await seen(service, {})
        await have_left(3)
        waiting = await service.send(model="slow", parameters={"max_tokens": 2})
        assert (await service.client.get("/models/slow")).json()["state"] == "unavailable"
        assert (await service.result(waiting))["waiting"]["reason"] == "no_server"
        write(file, other.grpc_url)
        assert (await service.settled(waiting))["attempt_count"] == 1

    attempts = await rows.fetch("SELECT server, started_at, ended_at, outcome FROM attempts")
    assert {attempt["outcome"] for attempt in attempts} == {"completed"}
    away = [a for a in attempts if alone_from < a["started_at"] < alone_until]
    assert len(away) >= 60
    assert {attempt["server"] for attempt in away} == {triton.grpc_url}
    after = {a["server"] for a in attempts if a["started_at"] > swapped_at}
    assert after == {other.grpc_url}
    assert [a for a in attempts if a["server"] == other.grpc_url and a["started_at"] < removed_at < a["ended_at"]]


@pytest.fixture
def full_checkout(tmp_path: Path) -> Iterator[Checkout]:
    """All of a checkout, with ports of its own."""
    copy_runner(tmp_path)
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    for name in ("app", "migrations", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    made = Checkout(tmp_path)
    yield made
    for runner in made.runners:
        runner.destroy()


async def test_make_run_works_without_a_server_and_takes_one_up(full_checkout: Checkout, triton: RunningTriton) -> None:
    runner = await asyncio.to_thread(full_checkout.make("run", TRITON_URLS="none").ready)
    file = full_checkout.path / ".local" / "servers.json"
    assert f"none yet; they are read from {file}" in runner.output
    assert "make demo" not in runner.output
    assert not any("tritonserver" in command for command in runner.processes().values())
    url = f"http://{HOST}:{full_checkout.env['API_PORT']}"
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        service = Service(client, Settings())
        ready = (await client.get("/health/ready")).json()
        assert (ready["status"], ready["triton"]) == ("ready", [])
        context = await service.context("A prompt.")
        unknown = await client.post(f"/models/send/tiny/{context}")
        assert unknown.json()["code"] == "model_not_found"
        write(file, triton.grpc_url)
        await seen(service, {"server-0": True})
        result = await service.settled(await service.send(context))
        assert result["status"] == "completed"
    runner.process.terminate()
    with suppress(TimeoutError):
        await asyncio.to_thread(runner.exit_code)
    runner.assert_gone()
