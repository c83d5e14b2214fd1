"""Triton on the instance: what is checked first, start, restart, logs."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nvidia_triton.vast import remote, remote_scripts, ssh
from nvidia_triton.vast.errors import TargetError
from tests.servers import TEST_MODELS
from tests.vast.fake import FakeVast, Machine
from tests.vast.kit import until
from tests.vast.rented import Rented, rent

Rent = Callable[..., Rented]


@pytest.fixture
def make(vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> Rent:
    def rented(machine: Machine | None = None, **options: object) -> Rented:
        vast.machine = machine or Machine()
        return rent(vast, vast_env, tmp_path / "checkout", **options)

    return rented


def pid_of(rented: Rented) -> int | None:
    return remote.status(ssh.check(rented.context, rented.instance)).pid


def test_started_twice_it_runs_once(make: Rent) -> None:
    rented = make(env={"HF_TOKEN": "hf_secret"})
    remote.run_tritonserver(rented.context, rented.instance)
    first = pid_of(rented)
    assert first is not None
    assert "Triton is live" in rented.said()
    remote.run_tritonserver(rented.context, rented.instance)
    assert "serves already" in rented.said()
    assert pid_of(rented) == first
    assert "HF_TOKEN=hf_secret" in rented.ssh(f"tr '\\0' '\\n' </proc/{first}/environ")
    assert "hf_secret" not in rented.ssh("cat /proc/*/cmdline | tr '\\0' ' '")
    flags = rented.ssh(f"tr '\\0' '\\n' </proc/{first}/cmdline")
    assert "--grpc-http2-min-recv-ping-interval-without-data=5000" in flags
    assert "--http-address=127.0.0.1" in flags


def test_restart_is_another_process_and_loads_what_was_there(make: Rent) -> None:
    rented = make()
    remote.run_tritonserver(rented.context, rented.instance)
    first = pid_of(rented)
    rented.ssh("mkdir -p /opt/models/one/1")
    (rented.opt / "models/one/config.pbtxt").write_text(
        'backend: "vllm"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]'
    )
    (rented.opt / "models/one/1/model.json").write_text('{"model": "tests/tiny"}')
    remote.run_tritonserver(rented.context, rented.instance, restart=True)
    second = pid_of(rented)
    assert second is not None
    assert second != first
    said = rented.said()
    assert f"stopping Triton on {rented.instance.name} (process {first})" in said
    assert "one: ready after" in said
    assert (rented.opt / "triton/tritonserver.log.1").is_file()


def test_a_pid_file_of_another_process_is_stale(make: Rent) -> None:
    rented = make()
    rented.ssh("echo '1 1' >/opt/triton/tritonserver.pid")
    assert pid_of(rented) is None
    remote.run_tritonserver(rented.context, rented.instance)
    assert pid_of(rented) not in (None, 1)


def test_killed_it_starts_again(make: Rent) -> None:
    rented = make()
    remote.run_tritonserver(rented.context, rented.instance)
    rented.ssh(f"kill -9 {pid_of(rented)}")
    assert pid_of(rented) is None
    remote.run_tritonserver(rented.context, rented.instance)
    assert pid_of(rented) is not None


def test_a_frozen_server_is_restarted_by_force(make: Rent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "EXIT_SECONDS", 1)
    rented = make()
    remote.run_tritonserver(rented.context, rented.instance)
    first = pid_of(rented)
    rented.ssh(f"kill -STOP {first}")
    remote.run_tritonserver(rented.context, rented.instance, restart=True)
    assert pid_of(rented) not in (None, first)


def test_stop(make: Rent) -> None:
    rented = make()
    assert not remote.stop(rented.context, rented.instance)
    remote.run_tritonserver(rented.context, rented.instance)
    assert remote.stop(rented.context, rented.instance)
    assert remote.status(ssh.check(rented.context, rented.instance)) == remote.Status(None, False)


@pytest.mark.parametrize(
    ("machine", "needs", "reason"),
    [
        (Machine(nvidia_smi=False), {}, "nvidia-smi shows no GPU"),
        (Machine(driver="575.51.03"), {}, "the driver is 575.51.03 and the image needs 580.95"),
        (Machine(shm_mib=64), {}, "/dev/shm, has 64 MiB and 128 are needed"),
        (Machine(), {"free_disk_gb": 10**6}, "of the disk are free and"),
        (Machine(triton=False), {}, "is no tritonserver image"),
    ],
)
def test_what_is_short_is_said_and_nothing_starts(
    make: Rent, machine: Machine, needs: dict[str, float], reason: str
) -> None:
    rented = make(machine)
    definition = rented.context.definition
    changed = definition.model_copy(update={"needs": definition.needs.model_copy(update=needs)})
    with pytest.raises(TargetError) as caught:
        remote.run_tritonserver(dataclasses.replace(rented.context, definition=changed), rented.instance)
    assert reason in str(caught.value)
    assert f"make destroy-instance CONTRACT_ID={rented.instance.id}" in str(caught.value)
    assert pid_of(rented) is None


def test_without_the_saved_environment_it_starts_with_a_note(make: Rent) -> None:
    rented = make()
    rented.ssh("rm /opt/triton/triton.env")
    remote.run_tritonserver(rented.context, rented.instance)
    assert "triton.env is missing" in rented.said()


def test_a_server_that_ends_at_once_shows_its_log(make: Rent) -> None:
    rented = make()
    definition = rented.context.definition
    triton = definition.triton.model_copy(update={"flags": ("--no-such-flag",)})
    context = dataclasses.replace(rented.context, definition=definition.model_copy(update={"triton": triton}))
    with pytest.raises(TargetError) as caught:
        remote.run_tritonserver(context, rented.instance)
    assert "ended at its start" in str(caught.value)
    assert "no-such-flag" in str(caught.value)


def test_logs(make: Rent) -> None:
    rented = make()
    with pytest.raises(TargetError, match="There is no log of Triton"):
        remote.logs(rented.context, rented.instance, follow=False, lines=5)
    remote.run_tritonserver(rented.context, rented.instance)
    rented.said()
    remote.logs(rented.context, rented.instance, follow=False, lines=5)
    assert len(rented.said().splitlines()) == 5


def test_the_log_stays_within_bounds_while_triton_runs(make: Rent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LOG_BYTES", 100_000)
    monkeypatch.setattr(remote, "WATCH_SECONDS", 0.2)
    rented = make(env={"HF_TOKEN": "hf_secret"})
    remote.run_tritonserver(rented.context, rented.instance)
    triton, log = pid_of(rented), rented.opt / "triton/tritonserver.log"
    for _ in range(3):
        rented.ssh(f"yes 'a line of the log' | head -c 300000 >>{remote_scripts.LOG}")
        until(lambda: log.stat().st_size < 100_000, "the log is cut")
    assert (rented.opt / "triton/tritonserver.log.1").stat().st_size < 700_000
    rented.ssh("curl -s -X POST http://127.0.0.1:8000/v2/repository/models/nosuch/load")
    until(lambda: b"nosuch" in log.read_bytes(), "Triton goes on writing")
    assert b"\0" not in log.read_bytes()
    assert pid_of(rented) == triton

    processes = rented.vast.host(rented.instance.id).processes()
    watchers = [psutil.Process(pid) for pid, words in processes.items() if "--model-repository" in words]
    watchers = [each for each in watchers if each.is_running() and each.name() == "bash"]
    # What it starts for a look is called as it is.
    [watcher] = [each for each in watchers if each.ppid() not in {other.pid for other in watchers}]
    assert b"hf_secret" not in Path(f"/proc/{watcher.pid}/environ").read_bytes()
    assert remote.stop(rented.context, rented.instance)
    until(lambda: not rented.vast.host(rented.instance.id).processes(), "nothing of it is left")


def test_what_keeps_the_log_short_ends_with_a_triton_that_is_killed(
    make: Rent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WATCH_SECONDS", 0.2)
    rented = make()
    remote.run_tritonserver(rented.context, rented.instance)
    rented.ssh(f"kill -9 {pid_of(rented)}")
    until(lambda: not rented.vast.host(rented.instance.id).processes(), "nothing of it is left")


def test_values_arrive_as_they_were_written(make: Rent) -> None:
    """Nothing of them is taken for a command on the way."""
    odd = {
        "SPACES": "a  b ",
        "QUOTES": 'it\'s "so"',
        "COMMANDS": "$(touch /opt/triton/one) `touch /opt/triton/two` ; touch /opt/triton/three",
        "LINES": "first\nsecond\\",
        "DOLLARS": "$HOME ${PATH} \\$x !!",
    }
    rented = make(env=odd)
    definition = rented.context.definition
    flag = "--id=$(touch /opt/triton/four) 'it is' \"so\"\n`touch /opt/triton/five`"
    triton = definition.triton.model_copy(update={"flags": (*definition.triton.flags, flag)})
    context = dataclasses.replace(rented.context, definition=definition.model_copy(update={"triton": triton}))
    remote.run_tritonserver(context, rented.instance)
    pid = pid_of(rented)
    environment = rented.ssh(f"cat /proc/{pid}/environ").split("\0")
    assert [f"{name}={value}" for name, value in odd.items() if f"{name}={value}" not in environment] == []
    assert flag in rented.ssh(f"cat /proc/{pid}/cmdline").split("\0")
    assert not [name for name in ("one", "two", "three", "four", "five") if (rented.opt / "triton" / name).exists()]


ENGINE = "VLLM::EngineCore child"


def engine(rented: Rented) -> set[int]:
    """Processes of the model's engine, by their pids outside of the machine."""
    processes = rented.vast.host(rented.instance.id).processes()
    return {pid for pid, words in processes.items() if ENGINE in words}


def with_an_engine(make: Rent) -> Rented:
    """Triton runs, and a model whose engine is two processes beside its stub."""
    rented = make()
    shutil.copytree(TEST_MODELS / "child", rented.opt / "models/child")
    remote.run_tritonserver(rented.context, rented.instance)
    assert "child: ready after" in rented.said()
    until(lambda: len(engine(rented)) == 2, "the engine has its child")
    return rented


def kill_the_stub(rented: Rented) -> None:
    rented.ssh("pkill -9 -f triton_python_backend_stub")


def test_the_engine_of_a_killed_stub_ends_while_triton_runs(make: Rent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WATCH_SECONDS", 0.2)
    rented = with_an_engine(make)
    triton = pid_of(rented)
    kill_the_stub(rented)
    until(lambda: not engine(rented), "the engine ends")
    assert pid_of(rented) == triton


@pytest.mark.parametrize("restart", [False, True])
def test_a_restart_ends_the_engines_of_the_server_before(
    make: Rent, restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that crashed, or one whose stub was killed and that nobody has cleaned up after."""
    monkeypatch.setattr(remote, "WATCH_SECONDS", 3600)
    rented = with_an_engine(make)
    before = engine(rented)
    if restart:
        kill_the_stub(rented)
    else:
        rented.ssh(f"kill -9 {pid_of(rented)}")
    assert engine(rented) == before
    remote.run_tritonserver(rented.context, rented.instance, restart=restart)
    assert not engine(rented) & before
    until(lambda: len(engine(rented)) == 2, "the engine has its child")


def test_a_stop_ends_the_engines_too(make: Rent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WATCH_SECONDS", 3600)
    rented = with_an_engine(make)
    kill_the_stub(rented)
    assert remote.stop(rented.context, rented.instance)
    until(lambda: not rented.vast.host(rented.instance.id).processes(), "all that was killed has gone")
