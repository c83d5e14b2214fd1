"""The rented machines are machines: ssh, rsync and Triton do there what they do elsewhere."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from vastai import VastAI

from nvidia_triton.local.settings import ROOT, free_ports
from tests.vast.fake import FakeVast, Machine
from tests.vast.kit import TRITON, answers, create, public, ssh, until


def test_a_machine_is_quickly_there_and_looks_like_one(vast: FakeVast, ssh_key: Path) -> None:
    vast.machine = Machine(driver="535.183.01", gpu="NVIDIA L40S", memory_mib=46068, gpu_count=2, shm_mib=64)
    start = time.monotonic()
    ident = vast.rent(
        public(ssh_key),
        env={"HF_TOKEN": "secret"},
        onstart="umask 077; mkdir -p /opt/triton; export -p >/opt/triton/env",
    )["id"]
    assert time.monotonic() - start < 5
    smi = vast.ssh(ident, ssh_key, "nvidia-smi --query-gpu=driver_version,name,memory.total --format=csv,noheader")
    assert smi.stdout == "535.183.01, NVIDIA L40S, 46068 MiB\n" * 2
    assert vast.ssh(ident, ssh_key, "echo $HOME; id -u; df -m --output=size /dev/shm | tail -1").stdout.split() == [
        "/opt/root",
        "0",
        "64",
    ]
    assert "HF_TOKEN" not in vast.ssh(ident, ssh_key, "env").stdout
    assert 'HF_TOKEN="secret"' in vast.ssh(ident, ssh_key, "cat /opt/triton/env").stdout
    assert vast.ssh(ident, ssh_key, "ip -o link").stdout.count("\n") == 1
    assert vast.ssh(ident, ssh_key, "tty", options=("-tt",)).stdout.startswith("/dev/pts/")
    written = vast.ssh(ident, ssh_key, "touch /etc/nothing-of-ours")
    assert "Read-only file system" in written.stderr
    inside = vast.ssh(ident, ssh_key, "find /opt -mindepth 1 -maxdepth 2").stdout.splitlines()
    assert {str(path) for pattern in ("*", "*/*") for path in Path("/opt").glob(pattern)} <= set(inside)


def test_two_machines_each_with_a_triton_of_its_own(vast: FakeVast, ssh_key: Path) -> None:
    idents = [vast.rent(public(ssh_key))["id"] for _ in range(2)]
    ports = free_ports(2)
    with contextlib.ExitStack() as stack:
        for ident, port in zip(idents, ports, strict=True):
            forward = f"127.0.0.1:{port}:127.0.0.1:8000"
            stack.enter_context(ssh(vast, ident, ssh_key, "-N", "-L", forward, "root@127.0.0.1"))
        for ident, port in zip(idents, ports, strict=True):
            started = vast.ssh(ident, ssh_key, TRITON)
            assert started.returncode == 0, started.stdout
            assert until(lambda port=port: answers(f"http://127.0.0.1:{port}/v2/health/ready"), "Triton answers")
        processes = [vast.host(ident).processes() for ident in idents]
        assert [sum("bin/tritonserver" in line for line in found.values()) for found in processes] == [1, 1]

        vast.ssh(idents[0], ssh_key, "kill -9 $(cat /opt/triton/tritonserver.pid)")
        assert until(lambda: not answers(f"http://127.0.0.1:{ports[0]}/v2/health/live"), "the first is dead")
        assert answers(f"http://127.0.0.1:{ports[1]}/v2/health/live")


def test_triton_loads_and_serves_a_model(vast: FakeVast, ssh_key: Path) -> None:
    ident = vast.rent(public(ssh_key))["id"]
    host = vast.host(ident)
    copied = subprocess.run(
        [
            *("rsync", "-a", "--mkpath", "-e", f"ssh -F /dev/null -i {ssh_key} -p {host.port} -o BatchMode=yes "),
            *("--rsh", f"ssh -F /dev/null -i {ssh_key} -p {host.port} -o BatchMode=yes -o StrictHostKeyChecking=no "
              "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"),
            *(f"{ROOT}/models/demo", "root@127.0.0.1:/opt/models/"),
        ],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert copied.returncode == 0, copied.stderr
    assert vast.ssh(ident, ssh_key, TRITON).returncode == 0
    base = "http://127.0.0.1:8000/v2"
    loaded = vast.ssh(ident, ssh_key, f"curl -s -X POST {base}/repository/models/demo/load", seconds=60)
    assert loaded.stdout == ""
    answer = vast.ssh(ident, ssh_key, f'curl -s {base}/models/demo/generate -d \'{{"text_input": "Hello"}}\'')
    assert '"text_output"' in answer.stdout


def test_keys_let_people_in(vast: FakeVast, sdk: VastAI, ssh_key: Path) -> None:
    ident = create(sdk)
    vast.wait_status(ident, "running")
    refused = vast.ssh(ident, ssh_key, "true")
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr

    vast.faults.ssh_key_seconds = 0.5
    attached = time.monotonic()
    assert sdk.attach_ssh(instance_id=ident, ssh_key=public(ssh_key))["success"] is True
    assert sdk.attach_ssh(instance_id=ident, ssh_key=public(ssh_key))["success"] is False
    until(lambda: vast.ssh(ident, ssh_key, "true").returncode == 0, "the key arrives")
    assert time.monotonic() - attached > 0.5

    vast.faults.ssh_key_seconds = 0.0
    sdk.create_ssh_key(ssh_key=public(ssh_key))
    assert [key["public_key"] for key in sdk.show_ssh_keys()] == [public(ssh_key).strip()]
    other = create(sdk, 9101003)
    vast.wait_status(other, "running")
    assert vast.ssh(other, ssh_key, "true").returncode == 0


def test_stop_ends_processes_and_start_brings_files_back(vast: FakeVast, sdk: VastAI, ssh_key: Path) -> None:
    ident = vast.rent(public(ssh_key), onstart="echo started >>/opt/starts; sleep 1000 & disown")["id"]
    assert any("sleep 1000" in line for line in vast.host(ident).processes().values())
    assert sdk.stop_instance(id=ident) == {"success": True}
    assert vast.host(ident).processes() == {}
    row = sdk.show_instance(id=ident)
    assert (row["actual_status"], row["intended_status"], row["ports"]) == ("exited", "stopped", {})
    assert vast.ssh(ident, ssh_key, "true").returncode == 255
    stopped = vast.spent()

    assert sdk.start_instance(id=ident) == {"success": True}
    vast.wait_status(ident, "running")
    assert vast.ssh(ident, ssh_key, "cat /opt/starts").stdout == "started\nstarted\n"
    assert vast.spent() > stopped


def test_ssh_that_is_cut_and_frozen(vast: FakeVast, ssh_key: Path) -> None:
    ident = vast.rent(public(ssh_key))["id"]
    with ssh(vast, ident, ssh_key, "root@127.0.0.1", "echo in; sleep 1000") as cut:
        assert cut.stdout is not None
        assert until(lambda: cut.stdout.readline().endswith("in\n"), "ssh is in")
        vast.cut(ident)
        assert cut.wait(10) == 255

    alive = ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2")
    with ssh(vast, ident, ssh_key, *alive, "root@127.0.0.1", "echo in; sleep 1000") as frozen:
        assert frozen.stdout is not None
        assert until(lambda: frozen.stdout.readline().endswith("in\n"), "ssh is in")
        vast.freeze(ident)
        assert frozen.wait(15) == 255
    with ssh(vast, ident, ssh_key, "root@127.0.0.1", "echo late") as late:
        with pytest.raises(subprocess.TimeoutExpired):
            late.wait(0.7)
        vast.thaw(ident)
        assert late.wait(10) == 0


def test_addresses_and_host_keys_change(vast: FakeVast, sdk: VastAI, ssh_key: Path) -> None:
    ident = vast.rent(public(ssh_key))["id"]
    proxy = vast.host(ident).proxy_port
    assert (row := sdk.show_instance(id=ident))["ssh_port"] == proxy
    assert row["ssh_host"] == "127.0.0.1"
    with ssh(vast, ident, ssh_key, "root@127.0.0.1", "true", port=proxy) as through_proxy:
        assert through_proxy.wait(10) == 0

    vast.refuse(ident, proxy=False)
    assert "Connection refused" in vast.ssh(ident, ssh_key, "true").stderr
    with ssh(vast, ident, ssh_key, "root@127.0.0.1", "true", port=proxy) as through_proxy:
        assert through_proxy.wait(10) == 0
    vast.refuse(ident, False)
    assert vast.ssh(ident, ssh_key, "true").returncode == 0

    before = vast.host(ident).port
    vast.move(ident, "127.0.0.2")
    row = sdk.show_instance(id=ident)
    assert row["public_ipaddr"] == "127.0.0.2"
    assert row["ports"]["22/tcp"][0]["HostPort"] != str(before)
    with ssh(vast, ident, ssh_key, "root@127.0.0.2", "true") as moved:
        assert moved.wait(10) == 0

    vast.change_host_key(ident)
    with ssh(vast, ident, ssh_key, "root@127.0.0.2", "true") as changed:
        output, _ = changed.communicate(timeout=10)
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in output


def test_rsync_may_be_missing(vast: FakeVast, ssh_key: Path) -> None:
    ident = vast.rent(public(ssh_key))["id"]
    assert vast.ssh(ident, ssh_key, "command -v rsync").stdout == "/usr/bin/rsync\n"
    vast.hide_rsync(ident)
    assert vast.ssh(ident, ssh_key, "command -v rsync").returncode != 0

    install = "command -v rsync || { apt-get update && apt-get install -y rsync; }"
    for apt, status in ((True, 0), (False, 127)):
        vast.machine = Machine(rsync=False, apt=apt)
        other = vast.rent(public(ssh_key), onstart=install)["id"]
        assert vast.ssh(other, ssh_key, "rsync --version").returncode == status


def test_no_direct_port(vast: FakeVast, sdk: VastAI, ssh_key: Path) -> None:
    vast.machine = Machine(direct=False)
    ident = vast.rent(public(ssh_key))["id"]
    assert sdk.show_instance(id=ident)["ports"] == {}
    assert vast.ssh(ident, ssh_key, "true").returncode == 255
    with ssh(vast, ident, ssh_key, "root@127.0.0.1", "true", port=vast.host(ident).proxy_port) as through_proxy:
        assert through_proxy.wait(10) == 0


def test_crashed_and_vanished(vast: FakeVast, sdk: VastAI, ssh_key: Path) -> None:
    crashed, vanished = (vast.rent(public(ssh_key))["id"] for _ in range(2))
    vast.crash(crashed)
    assert sdk.show_instance(id=crashed)["actual_status"] == "running"
    assert "Connection refused" in vast.ssh(crashed, ssh_key, "true").stderr
    vast.set_status(crashed, "offline", "host is offline")
    assert sdk.show_instance(id=crashed)["status_msg"] == "host is offline"
    root = vast.host(vanished).root
    vast.vanish(vanished)
    assert sdk.show_instance(id=vanished) is None
    assert not root.exists()


def test_nothing_of_a_destroyed_machine_is_left(vast: FakeVast, sdk: VastAI, ssh_key: Path) -> None:
    ident = vast.rent(public(ssh_key))["id"]
    host = vast.host(ident)
    assert vast.ssh(ident, ssh_key, TRITON).returncode == 0
    with ssh(vast, ident, ssh_key, "-N", "root@127.0.0.1") as session:
        until(host.ssh_pids, "a connection")
        pids = [host.pid, *host.processes()]
        assert len(pids) >= 3
        sdk.destroy_instance(id=ident)
        assert session.wait(10) == 255
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert not host.root.exists()
    assert str(host.root) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_in_the_foreground(ssh_key: Path, tmp_path: Path, number: signal.Signals) -> None:
    """However it ends, its machines end with it."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.vast", "--port", str(port), "--boot-seconds", "0.1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        exports = next(line for line in lines if line.startswith("export "))
        given = dict(pair.split("=", 1) for pair in exports.split()[1:])
        assert given["VAST_URL"] == f"http://127.0.0.1:{port}"
        with httpx.Client(
            base_url=given["VAST_URL"],
            headers={"Authorization": f"Bearer {given['VAST_API_KEY']}"},
            trust_env=False,
            timeout=30,
        ) as http:
            for _ in range(2):
                rented = http.post("/_control/rent", json={"onstart": "sleep 1000 & disown"})
                assert rented.status_code == 200, rented.text
        children = psutil.Process(process.pid).children(recursive=True)
        assert sum(child.name() == "sleep" for child in children) >= 2
        process.send_signal(number)
        assert process.wait(20) == (-number if number == signal.SIGKILL else 0)
        until(lambda: not any(child.is_running() for child in children), "all machines end")
        if number != signal.SIGKILL:
            assert not list(tmp_path.glob("simulated-vast-*"))
    finally:
        process.kill()
        process.communicate()
