"""An engine that is a process of its own, as vLLM's is, ends whatever else ends first."""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.local.conftest import Checkout, Runner, wait_for
from tests.servers import TEST_MODELS

ENGINE = "VLLM::EngineCore child"
STUB = "triton_python_backend_stub"


def http(checkout: Checkout, path: str) -> None:
    url = f"http://127.0.0.1:{checkout.env['TRITON_HTTP_PORT']}{path}"
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=60):
        pass


def start(checkout: Checkout) -> Runner:
    """A server with one model, whose engine is two processes beside the stub."""
    command = [sys.executable, "-m", "nvidia_triton.local.triton", f"--model-repository={TEST_MODELS}"]
    command += [f"--{name}-port={checkout.env[f'TRITON_{name.upper()}_PORT']}" for name in ("http", "grpc", "metrics")]
    runner = checkout.start(*command, "--load-model=child")
    wait_for(lambda: "Started Metrics Service" in runner.output or runner.process.poll() is not None, "no server")
    wait_for(lambda: len(engine(runner)) == 2, "no engine")
    return runner


def engine(runner: Runner) -> set[int]:
    return {pid for pid, command in runner.processes().items() if ENGINE in command}


def test_the_engine_of_a_killed_stub_ends_and_the_model_comes_back(checkout: Checkout) -> None:
    runner = start(checkout)
    first = engine(runner)
    os.kill(runner.pid_of(STUB), signal.SIGKILL)
    wait_for(lambda: not engine(runner) & first, "the engine lives on", 20)
    assert runner.process.poll() is None
    http(checkout, "/v2/repository/models/child/unload")
    http(checkout, "/v2/repository/models/child/load")
    wait_for(lambda: len(engine(runner)) == 2, "no new engine")
    runner.process.terminate()
    assert runner.exit_code() == 0
    runner.assert_gone()


def test_unloading_ends_the_engine(checkout: Checkout) -> None:
    runner = start(checkout)
    http(checkout, "/v2/repository/models/child/unload")
    wait_for(lambda: not engine(runner), "the engine lives on")
    assert runner.process.poll() is None


def test_a_killed_server_leaves_no_engine(checkout: Checkout) -> None:
    runner = start(checkout)
    os.kill(runner.pid_of("bin/tritonserver"), signal.SIGKILL)
    assert runner.exit_code() == -signal.SIGKILL
    runner.assert_gone(seconds=5)


@pytest.mark.parametrize("cause", ["server", "stub"])
def test_what_nobody_was_left_to_end_is_ended_at_the_next_start(checkout: Checkout, cause: str) -> None:
    runner = start(checkout)
    # Killed while frozen, it cleans up after nobody.
    runner.process.send_signal(signal.SIGSTOP)
    victim = runner.pid_of("bin/tritonserver" if cause == "server" else STUB)
    os.kill(victim, signal.SIGKILL)
    runner.process.kill()
    runner.process.wait()
    wait_for(lambda: not any("bin/tritonserver" in each for each in runner.processes().values()), "a server")
    assert engine(runner)
    again = start(checkout)
    assert not runner.processes()
    again.process.terminate()
    assert again.exit_code() == 0
    again.assert_gone()


END_ABANDONED = "from pathlib import Path; from nvidia_triton.local.orphans import end_abandoned; end_abandoned(Path())"


def end_abandoned(checkout: Checkout, *prefix: str) -> None:
    """Looks for what was abandoned in the servers' directory, from within it."""
    directory = checkout.path / ".local" / "triton"
    directory.mkdir(parents=True, exist_ok=True)
    env = {**checkout.env, "PYTHONPATH": str(checkout.path)}
    subprocess.run([*prefix, sys.executable, "-c", END_ABANDONED], cwd=directory, env=env, check=True)


def test_another_server_of_the_same_directory_is_left_alone(checkout: Checkout) -> None:
    """Two may share it; what runs there belongs to a leader that lives."""
    runner = start(checkout)
    end_abandoned(checkout)
    assert len(engine(runner)) == 2


def test_who_looks_survives_in_a_session_that_lost_its_leader(checkout: Checkout) -> None:
    """The shell that led it has ended, as after a log-out."""
    end_abandoned(checkout, "setsid", "--wait", "sh", "-c", '(sleep 0.2; "$@"; echo $? >ended) & exit', "sh")
    ended = checkout.path / ".local" / "triton" / "ended"
    wait_for(lambda: ended.exists() and bool(ended.read_text().strip()), "it did not end")
    assert ended.read_text().strip() == "0"


def test_a_leader_outside_the_container_is_no_ended_leader(checkout: Checkout) -> None:
    """`docker exec` and its like: the number of the session is 0 inside."""
    container = ("unshare", "--pid", "--fork", "--mount-proc")
    if subprocess.run([*container, "true"], check=False).returncode:
        pytest.skip("not tested, for want of the right to make a namespace of processes: run as root")
    # Not as the container's first process, which no kill reaches.
    end_abandoned(checkout, *container, "sh", "-c", '"$@"; exit $?', "sh")
