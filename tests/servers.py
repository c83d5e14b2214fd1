"""Real servers for tests: a tritonserver of our own on free ports."""

import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import pytest

from nvidia_triton.local.process import shielded
from nvidia_triton.local.settings import ROOT, free_ports
from nvidia_triton.local.triton import HOST, TritonServer, clean_up_after

TEST_MODELS = Path(__file__).with_name("models")


class RunningTriton:
    """A started tritonserver; it dies with the test process."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server
        self.grpc_url = f"{HOST}:{server.grpc_port}"
        self.http_url = f"http://{HOST}:{server.http_port}"
        self.metrics_url = f"http://{HOST}:{server.metrics_port}/metrics"
        self.log_file = server.work_dir / f"triton-{server.grpc_port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def is_model_ready(self, name: str) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/models/{name}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def start(self, *, wait: bool = True) -> None:
        """Start, or start again after `stop` or `kill` on the same ports; about 3 s.

        The server dies with the thread that starts it, so that one has to live as long.
        """
        assert not self.running
        self.server.prepare()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                shielded(self.server.command()),
                env=self.server.environment(),
                cwd=self.server.work_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            self.server.wait_ready(alive=lambda: self.running)

    def stop(self) -> None:
        """SIGTERM, so that requests in flight get `exit_timeout` seconds; then what `kill` does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL at once, and clean up after it."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM and return while the server drains."""
        os.kill(self.pid, signal.SIGTERM)

    def freeze(self) -> None:
        """Stop the server and its stubs; sockets stay open and silent until `thaw`."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self.running:
            os.kill(self.pid, number)
            if number != signal.SIGKILL:
                self.thaw()
            try:
                self._process.wait(self.server.exit_timeout + 5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        clean_up_after(self.pid)


def copied_models(folder: Path, names: Iterable[str]) -> Path:
    """A repository of these models: the tests' own, or else the project's."""
    for name in names:
        own = TEST_MODELS / name
        shutil.copytree(own if own.is_dir() else ROOT / "models" / name, folder / name)
    return folder


def start_triton(
    work_dir: Path,
    models: tuple[str, ...] = ("tiny",),
    repository: Path = TEST_MODELS,
    *,
    ports: tuple[int, int, int] | None = None,
    wait: bool = True,
) -> RunningTriton:
    """Start a server on free ports (or `ports`: grpc, http, metrics) with `models` of `repository` loaded."""
    grpc, http, metrics = ports or free_ports(3)
    work_dir.mkdir(parents=True, exist_ok=True)
    running = RunningTriton(
        TritonServer(
            model_repository=repository,
            work_dir=work_dir,
            grpc_port=grpc,
            http_port=http,
            metrics_port=metrics,
            models=models,
            exit_timeout=3,
        )
    )
    running.start(wait=wait)
    return running


def start_demo(work_dir: Path, *others: str) -> RunningTriton:
    """Start a server with `demo`, which runs for real here: the other tests' models are simulated."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("ENGINE")
        return start_triton(work_dir, ("demo", *others), ROOT / "models")
