"""Servers named by a file that changes while a fleet uses it."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.config import Settings, SettingsError, load_settings
from app.engines.base import EngineError, Request
from app.fleet.fleet import Fleet, open_fleet
from app.fleet.servers import ServerEntry, ServerList
from nvidia_triton.local.settings import free_ports
from tests.servers import RunningTriton
from tests.service import eventually

FIXED = "10.0.0.1:8001"
LISTED = "127.0.0.1:8001"
PARAMETERS = {"max_tokens": 300, "ignore_eos": True}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.json"


def write(file: Path, *entries: dict[str, Any]) -> None:
    file.write_text(json.dumps({"servers": entries}))


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("tickets"), "propagate", True)

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "tickets.servers"]

    return said


def test_the_file_adds_to_the_fixed_servers_and_may_describe_them(file: Path) -> None:
    servers = ServerList((FIXED,), file)
    assert servers.read() == [ServerEntry(url=FIXED)]
    write(file, {"url": LISTED, "name": "vast-7835610", "hourly_price": 0.41}, {"url": FIXED, "name": "own"})
    assert servers.read() == [
        ServerEntry(url=FIXED, name="own"),
        ServerEntry(url=LISTED, name="vast-7835610", hourly_price=0.41),
    ]
    file.unlink()
    assert servers.read() == [ServerEntry(url=FIXED)]


def test_fields_of_a_later_release_are_no_error(file: Path) -> None:
    file.write_text(json.dumps({"servers": [{"url": LISTED, "region": "eu", "hourly_price": 1}], "made_by": "x"}))
    assert ServerList((), file).read() == [ServerEntry(url=LISTED, hourly_price=1.0)]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "Invalid JSON"),
        ('{"servers": [{"url": "127.0.0.1:80', "Invalid JSON"),
        ("[]", "object"),
        ("{}", "servers: Field required"),
        ('{"servers": {"url": "127.0.0.1:8001"}}', "servers: Input should be a valid array"),
        ('{"servers": [{"name": "x"}]}', "servers.0.url: Field required"),
        ('{"servers": [{"url": "127.0.0.1:8001"}, {"url": "http://there:80"}]}', "servers.1.url: 'http://there:80'"),
        ('{"servers": [{"url": "there:99999"}]}', "servers.0.url: 'there:99999' is not host:port"),
        ('{"servers": [{"url": "there:8001", "hourly_price": "0.41"}]}', "servers.0.hourly_price"),
        ('{"servers": [{"url": "there:8001", "hourly_price": NaN}]}', "servers.0.hourly_price"),
        ('{"servers": [{"url": "there:8001", "hourly_price": -1}]}', "servers.0.hourly_price"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
def test_a_broken_file_changes_nothing_and_is_named_once(
    file: Path, complaints: Callable[[], list[str]], content: str | bytes, named: str
) -> None:
    servers = ServerList((), file)
    write(file, {"url": LISTED})
    before = servers.read()
    assert [entry.url for entry in before] == [LISTED]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [servers.read() for _ in range(3)] == [before] * 3
    (complaint,) = complaints()
    assert "TRITON_SERVERS_FILE" in complaint
    assert named in complaint
    assert str(file.parent) not in complaint
    file.write_text("something else")
    assert servers.read() == before
    assert len(complaints()) == 2
    write(file)
    assert servers.read() == []


def test_a_file_that_cannot_be_read_changes_nothing(file: Path, complaints: Callable[[], list[str]]) -> None:
    servers = ServerList((), file)
    write(file, {"url": LISTED})
    before = servers.read()
    file.unlink()
    file.mkdir()
    assert [servers.read() for _ in range(2)] == [before] * 2
    (complaint,) = complaints()
    assert "Is a directory" in complaint


def test_no_server_need_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_URLS", " None ")
    monkeypatch.setenv("TRITON_SERVERS_FILE", "servers.json")
    settings = load_settings()
    assert (settings.triton_urls, settings.triton_servers_file) == ((), Path("servers.json"))
    monkeypatch.setenv("TRITON_URLS", "")
    monkeypatch.setenv("TRITON_SERVERS_FILE", "")
    settings = load_settings()
    assert (settings.triton_urls, settings.triton_servers_file) == (("127.0.0.1:8001",), None)
    monkeypatch.setenv("TRITON_URLS", "none,127.0.0.1:8001")
    with pytest.raises(SettingsError, match="TRITON_URLS: 'none' is not host:port"):
        load_settings()


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def settings_for(file: Path) -> Settings:
    return Settings(triton_urls=(), triton_servers_file=file)


def alias(triton: RunningTriton) -> str:
    """An address of the server that nothing else of these tests uses."""
    return triton.grpc_url.replace("127.0.0.1", "LOCALHOST")


async def test_a_server_that_appears_is_probed_at_once(file: Path, triton: RunningTriton) -> None:
    async with open_fleet(settings_for(file)) as fleet:
        await fleet.refresh()
        assert fleet.servers == []
        assert fleet.acquire("tiny") is None
        woken = asyncio.Event()
        fleet.changed = woken.set
        write(file, {"url": triton.grpc_url, "name": "one", "hourly_price": 0.5})
        await fleet.follow()
        await asyncio.wait_for(woken.wait(), 5)
        (server,) = fleet.servers
        assert (server.up, server.name, server.hourly_price) == (True, "one", 0.5)
        assert fleet.acquire("tiny") is not None
        write(file, {"url": triton.grpc_url, "name": "renamed"})
        await fleet.follow()
        assert fleet.servers == [server]
        assert (server.name, server.hourly_price, server.in_flight) == ("renamed", None, 1)


async def generate(fleet: Fleet, model: str = "slow") -> int:
    lane = fleet.acquire(model)
    assert lane is not None
    try:
        chunks = lane.server.engine.run(Request(model, "Go on.", PARAMETERS, "x", 20, 20))
        return len([chunk async for chunk in chunks])
    finally:
        fleet.release(lane)


async def test_a_server_that_leaves_ends_what_it_has_and_is_forgotten(file: Path, triton: RunningTriton) -> None:
    url = alias(triton)
    write(file, {"url": url})
    async with open_fleet(settings_for(file)) as fleet:
        await fleet.refresh()
        (server,) = fleet.servers
        lane = server.lane("slow")
        fleet.set_aside(server.lane("noop"), "for this test")
        running = asyncio.create_task(generate(fleet))
        await asyncio.sleep(0)
        write(file)
        await fleet.refresh()
        assert fleet.servers == []
        assert fleet.acquire("slow") is None
        assert fleet.free_slots(10) == []
        assert lane in list(fleet.lanes())
        assert metric("tickets_in_flight", server=url, model="slow") == 1
        assert await running > 10
        await fleet.follow()
        assert list(fleet.lanes()) == []
        assert metric("tickets_in_flight", server=url, model="slow") is None
        assert metric("tickets_server_up", server=url) is None
        assert metric("tickets_model_quarantined", server=url, model="noop") is None
        with pytest.raises(EngineError, match="left the fleet"):
            _ = server.engine

        write(file, {"url": url})
        await fleet.refresh()
        assert fleet.servers != [server]
        assert await generate(fleet) > 10
        assert metric("tickets_server_up", server=url) == 1


async def test_a_server_that_comes_back_before_it_is_gone_keeps_what_it_runs(file: Path, triton: RunningTriton) -> None:
    write(file, {"url": triton.grpc_url})
    async with open_fleet(settings_for(file)) as fleet:
        await fleet.refresh()
        (server,) = fleet.servers
        running = asyncio.create_task(generate(fleet))
        await asyncio.sleep(0)
        write(file)
        await fleet.follow()
        assert fleet.servers == []
        write(file, {"url": triton.grpc_url})
        await fleet.follow()
        assert fleet.servers == [server]
        assert server.in_flight == 1
        assert await generate(fleet) > 10
        assert await running > 10


async def test_a_question_under_way_is_answered_before_the_connection_closes(file: Path, triton: RunningTriton) -> None:
    write(file, {"url": triton.grpc_url})
    async with open_fleet(settings_for(file)) as fleet:
        await fleet.refresh()
        (server,) = fleet.servers
        with server.held() as engine:
            question = asyncio.create_task(engine.describe("tiny", 3))
            await asyncio.sleep(0)
            write(file)
            await fleet.refresh()
            assert (await question)["inputs"]
        await fleet.follow()
        assert server.connection is None


async def test_a_trial_under_way_when_the_connection_closes_only_fails(file: Path, triton: RunningTriton) -> None:
    """What tests a stuck model holds no slot."""
    write(file, {"url": triton.grpc_url})
    async with open_fleet(settings_for(file)) as fleet:
        await fleet.refresh()
        (server,) = fleet.servers

        async def trial() -> None:
            async for _ in server.engine.run(Request("slow", "x", PARAMETERS, "t", 20, 20)):
                begun.set()

        begun = asyncio.Event()
        task = asyncio.create_task(trial())
        await begun.wait()
        write(file)
        await fleet.refresh()
        await fleet.follow()
        assert server.connection is None
        with pytest.raises(EngineError):
            await task


async def test_one_that_does_not_answer_keeps_nobody_from_joining_or_leaving(file: Path, triton: RunningTriton) -> None:
    async def swallow(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    (port,) = free_ports(1)
    frozen = f"127.0.0.1:{port}"
    silent = await asyncio.start_server(swallow, "127.0.0.1", port)
    write(file, {"url": frozen})
    async with silent, open_fleet(settings_for(file)) as fleet:
        asking = asyncio.create_task(fleet.refresh())
        await asyncio.sleep(0)
        write(file, {"url": frozen}, {"url": triton.grpc_url})

        async def joined() -> bool:
            await fleet.follow()
            return fleet.acquire("tiny") is not None

        await eventually(joined, "the other one is used", 2)
        assert not asking.done()
        await asking
        assert [server.up for server in fleet.servers] == [False, True]
        assert fleet.servers[0].reason
