"""Tunnels: started, found, kept up, moved, stopped; and what the dispatcher makes of them."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.config import Settings
from nvidia_triton.local.settings import free_ports
from nvidia_triton.vast import forward, remote, tunnel
from nvidia_triton.vast.context import Address
from nvidia_triton.vast.deploy import deploy
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.ssh import Connection, Unreachable
from tests.service import Process, running_api
from tests.test_servers_come_and_go import Load, seen
from tests.vast.fake import FakeVast
from tests.vast.kit import until
from tests.vast.rented import Rented, rent


@pytest.fixture(autouse=True)
def usual_ports(monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """Others than Triton's own: tests elsewhere on this machine may have a tunnel there."""
    ports = tuple(free_ports(3))
    monkeypatch.setattr(tunnel, "USUAL_PORTS", ports)
    return ports


@pytest.fixture
def rented(vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> Iterator[Rented]:
    """With a Triton that serves nothing yet; no tunnel outlives the test."""
    made = rent(vast, vast_env, tmp_path / "checkout")
    remote.run_tritonserver(made.context, made.instance)
    made.said()
    yield made
    tunnel.stop(made.context, None)


def live(found: tunnel.Tunnel) -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{found.http_port}/v2/health/live", timeout=2, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def ended(found: tunnel.Tunnel) -> bool:
    """Nobody has waited for it yet, so what has ended is still there."""
    return not psutil.pid_exists(found.pid) or psutil.Process(found.pid).status() == psutil.STATUS_ZOMBIE


def log(rented: Rented) -> str:
    return tunnel.log_file(rented.context.state, rented.instance.id).read_text()


def test_started_twice_it_is_the_same(rented: Rented) -> None:
    first = tunnel.start(rented.context, rented.instance)
    assert live(first)
    entry = {
        "url": f"127.0.0.1:{first.grpc_port}",
        "name": rented.instance.name,
        "hourly_price": rented.instance.dph_total,
    }
    assert rented.context.servers.entries() == [entry]
    rented.context.servers.remove(rented.instance.name)
    assert tunnel.start(rented.context, rented.instance) == first
    assert rented.context.servers.entries() == [entry]
    command = Path(f"/proc/{first.pid}/cmdline").read_text()
    assert rented.vast.api_key not in command

    assert tunnel.stop(rented.context, rented.instance.id) == [rented.instance.id]
    assert not live(first)
    assert rented.context.servers.entries() == []
    assert tunnel.stop(rented.context, rented.instance.id) == []


def ports_of(found: tunnel.Tunnel) -> tuple[int, ...]:
    return found.http_port, found.grpc_port, found.metrics_port


@contextmanager
def taken(port: int) -> Iterator[None]:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        yield


def test_usual_ports_where_they_are_free_else_others(rented: Rented, usual_ports: tuple[int, ...]) -> None:
    with taken(usual_ports[2]):
        found = tunnel.start(rented.context, rented.instance)
        assert usual_ports[2] not in ports_of(found)
        assert live(found)
        tunnel.stop(rented.context, None)
    assert ports_of(tunnel.start(rented.context, rented.instance)) == usual_ports


def test_ports_that_somebody_takes_at_the_same_moment(
    rented: Rented, usual_ports: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They looked free when they were chosen."""
    looks = iter([True] * len(usual_ports))
    monkeypatch.setattr(tunnel, "is_free", lambda port: next(looks, False) or forward.is_free(port))
    with taken(usual_ports[1]):
        found = tunnel.start(rented.context, rented.instance)
        assert usual_ports[1] not in ports_of(found)
        assert live(found)


def test_a_killed_supervisor_takes_ssh_with_it_and_the_next_has_its_ports(rented: Rented) -> None:
    first = tunnel.start(rented.context, rented.instance)
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not live(first), "ssh ends with its supervisor")
    second = tunnel.start(rented.context, rented.instance)
    assert second.pid != first.pid
    assert ports_of(second) == ports_of(first)
    assert live(second)


def test_a_connection_that_dies_is_made_anew_on_the_same_ports(rented: Rented) -> None:
    found = tunnel.start(rented.context, rented.instance)
    cut = time.monotonic()
    rented.vast.cut(rented.instance.id)
    until(lambda: log(rented).count("up: ") == 2, "it is up again")
    assert live(found)
    assert time.monotonic() - cut < 6


def test_an_instance_that_moves_is_found_at_its_new_address(rented: Rented) -> None:
    found = tunnel.start(rented.context, rented.instance)
    rented.vast.move(rented.instance.id)
    until(lambda: log(rented).count("up: ") == 2, "it is up again", 30)
    assert live(found)


def test_a_frozen_far_end_is_noticed(rented: Rented) -> None:
    found = tunnel.start(rented.context, rented.instance)
    rented.vast.freeze(rented.instance.id)
    until(lambda: "down: " in log(rented), "silence is noticed", 30)
    rented.vast.thaw(rented.instance.id)
    until(lambda: log(rented).count("up: ") == 2, "it is up again", 60)
    until(lambda: live(found), "Triton answers")


def test_a_tunnel_without_triton_stays_and_says_so(rented: Rented) -> None:
    remote.stop(rented.context, rented.instance)
    found = tunnel.start(rented.context, rented.instance)
    assert "is up, and Triton does not answer through it" in rented.said()
    assert not live(found)
    remote.run_tritonserver(rented.context, rented.instance)
    assert live(found)
    remote.stop(rented.context, rented.instance)
    until(lambda: "Triton does not answer through the tunnel" in log(rented), "it is logged", 20)


def test_an_instance_that_is_gone_ends_its_tunnel(rented: Rented) -> None:
    found = tunnel.start(rented.context, rented.instance)
    rented.vast.vanish(rented.instance.id)
    until(lambda: tunnel.supervisor(rented.context.state, rented.instance.id) is None, "it ends", 60)
    assert rented.context.servers.entries() == []
    assert "knows no instance" in log(rented)
    assert not live(found)


def test_a_changed_host_key_is_not_taken(rented: Rented) -> None:
    tunnel.start(rented.context, rented.instance)
    rented.vast.change_host_key(rented.instance.id)
    rented.vast.cut(rented.instance.id)
    until(lambda: "is not the one of the first connection" in log(rented), "it says why", 30)
    tunnel.stop(rented.context, None)
    with pytest.raises(TargetError, match="ssh-keygen -R"):
        tunnel.start(rented.context, rented.again())


def test_a_local_port_that_another_program_took_meanwhile(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tunnel.start(rented.context, rented.instance)
    monkeypatch.setattr(tunnel, "UP_SECONDS", 3.0)
    rented.vast.refuse(rented.instance.id)
    rented.vast.cut(rented.instance.id)
    until(lambda: not live(found), "it is down")
    with taken(found.grpc_port):
        rented.vast.refuse(rented.instance.id, False)
        until(lambda: f"local port {found.grpc_port} is taken by another program" in log(rented), "it says so", 30)
        with pytest.raises(TargetError, match="is taken by another program"):
            tunnel.start(rented.context, rented.instance)
    until(lambda: live(found), "it is up once the port is free", 30)


def test_two_instances_at_once(rented: Rented, vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> None:
    other = rent(vast, vast_env, tmp_path / "checkout")
    remote.run_tritonserver(other.context, other.instance)
    found = [tunnel.start(each.context, each.instance) for each in (rented, other)]
    assert all(live(each) for each in found)
    assert len({port for each in found for port in (each.http_port, each.grpc_port, each.metrics_port)}) == 6
    assert {each["name"] for each in rented.context.servers.entries()} == {rented.instance.name, other.instance.name}
    tunnel.stop(rented.context, rented.instance.id)
    assert [each["name"] for each in rented.context.servers.entries()] == [other.instance.name]
    assert live(found[1])


def test_a_tunnel_whose_state_was_deleted_ends_by_itself(rented: Rented) -> None:
    """Nothing could stop it any more, and its ports would stay taken."""
    found = tunnel.start(rented.context, rented.instance)
    shutil.rmtree(rented.context.state.directory)
    until(lambda: ended(found), "it ends", 30)
    assert not live(found)
    assert rented.context.servers.entries() == []
    again = tunnel.start(rented.context, rented.instance)
    assert live(again)
    assert len(rented.context.servers.entries()) == 1


def test_a_tunnel_without_its_record_is_stopped_too(rented: Rented) -> None:
    found = tunnel.start(rented.context, rented.instance)
    rented.context.state.file(f"tunnel-{rented.instance.id}.json").write_text("{")
    assert tunnel.stop(rented.context, rented.instance.id) == [rented.instance.id]
    assert not live(found)
    again = tunnel.start(rented.context, rented.instance)
    rented.context.state.remove(f"tunnel-{rented.instance.id}")
    assert tunnel.stop(rented.context, None) == [rented.instance.id]
    assert not live(again)
    assert tunnel.stop(rented.context, None) == []


def test_a_laptop_that_slept(rented: Rented) -> None:
    """The supervisor and its ssh rest for longer than the far end waits."""
    found = tunnel.start(rented.context, rented.instance)
    asleep = [psutil.Process(found.pid), *psutil.Process(found.pid).children(recursive=True)]
    for process in asleep:
        process.suspend()
    rented.vast.cut(rented.instance.id)
    for process in asleep:
        process.resume()
    until(lambda: log(rented).count("up: ") == 2, "it is up again", 30)
    until(lambda: live(found), "Triton answers")


def test_a_frozen_supervisor_is_stopped(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "STOP_SECONDS", 1.0)
    found = tunnel.start(rented.context, rented.instance)
    os.kill(found.pid, signal.SIGSTOP)
    assert tunnel.stop(rented.context, None) == [rented.instance.id]
    until(lambda: not live(found), "ssh ends with it")


def test_a_far_end_that_falls_silent_after_its_greeting(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "UP_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = Address("127.0.0.1", mute.getsockname()[1])

        def greet() -> None:
            connection, _ = mute.accept()
            with connection:
                connection.sendall(b"SSH-2.0-mute\r\n")
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        connection = Connection(rented.context, rented.instance, address)
        with pytest.raises(Unreachable, match="it is silent"):
            forward.Forward(connection, 8000).ensure()
        thread.join(5)


def test_a_full_disk_breaks_no_tunnel(rented: Rented) -> None:
    """What cannot be noted any more is no reason to end what works."""
    local = rented.context.settings.local_dir
    shutil.rmtree(local)
    local.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "local", local], check=True)
    try:
        found = tunnel.start(rented.context, rented.instance)
        subprocess.run(["dd", "if=/dev/zero", f"of={local}/ballast", "bs=512"], stderr=subprocess.DEVNULL, check=False)
        rented.vast.cut(rented.instance.id)
        until(lambda: not live(found), "it is down")
        until(lambda: live(found), "it is up again", 30)
        assert not ended(found)
        assert tunnel.stop(rented.context, None) == [rented.instance.id]
    finally:
        subprocess.run(["umount", local], check=True)


async def test_a_tunnel_killed_and_frozen_under_load_costs_no_ticket(
    rented: Rented, make_settings: Callable[..., Settings], rows: Any, tmp_path: Path
) -> None:
    rented.add_model("slow", like="slow")
    await asyncio.to_thread(deploy, rented.context, rented.instance, ["slow"])
    found = await asyncio.to_thread(tunnel.start, rented.context, rented.instance)
    name = rented.instance.name
    settings = make_settings(
        triton_urls=(), triton_servers_file=rented.context.servers.path, stall_seconds=1.0, max_attempts=8
    )
    async with (
        running_api(settings) as service,
        Process("app.worker", settings, tmp_path / "dispatcher.log", TRITON_URLS="none") as dispatcher,
    ):
        await dispatcher.says("dispatching")
        await seen(service, {name: True})
        load = Load(service, rows)
        async with load.running():
            await load.moves(30)
            await asyncio.to_thread(rented.vast.cut, rented.instance.id)
            await load.moves(30)
            os.kill(found.pid, signal.SIGKILL)
            await seen(service, {name: False})
            await asyncio.to_thread(tunnel.start, rented.context, rented.instance)
            await load.moves(30)
            await asyncio.to_thread(rented.vast.freeze, rented.instance.id)
            await seen(service, {name: False})
            await asyncio.to_thread(rented.vast.thaw, rented.instance.id)
            await load.moves(30)
        await load.all_complete_once()
