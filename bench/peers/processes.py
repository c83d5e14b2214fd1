"""Processes that can be killed and started again, among them RabbitMQ and Redis from the distribution."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from nvidia_triton.local.process import LocalError, shielded
from nvidia_triton.local.settings import ROOT

START_SECONDS = 60.0
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class Part:
    """One process of a design; it dies with this one. `ready` tells whether it serves."""

    def __init__(
        self, name: str, command: list[str], log: Path, ready: Callable[[], bool] = lambda: True, **environment: str
    ) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._ready = ready
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                shielded(self._command),
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Blocks until it serves."""
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                raise LocalError(f"{self.name} does not start: {self._last_words()}")
            time.sleep(0.05)

    def finished(self) -> None:
        """Blocks until it has ended, and must have ended well."""
        assert self._process is not None
        if self._process.wait(timeout=START_SECONDS) != 0:
            raise LocalError(f"{self.name} failed: {self._last_words()}")

    def _last_words(self) -> str:
        """The end of its log, which does not outlive the run."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " ".join(lines[-3:]) or "it said nothing."

    def kill(self) -> None:
        """It and all that it started, as a power cut would."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def listens(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return answers


def check_installed() -> None:
    """
    Raises:
        LocalError: RabbitMQ or Redis is missing.
    """
    if not RABBITMQ.exists() or not shutil.which("redis-server"):
        raise LocalError(
            "Celery is compared with RabbitMQ and Redis, which are not installed: "
            "`sudo apt-get install rabbitmq-server redis-server`, then start again."
        )


def epmd(directory: Path, port: int) -> Part:
    """Where RabbitMQ's node finds the others, of which there are none; RabbitMQ would leave one running."""
    return Part("epmd", ["epmd", "-address", "127.0.0.1", "-port", str(port)], directory / "epmd.log", listens(port))


def rabbitmq(directory: Path, port: int, distribution_port: int, names_port: int) -> Part:
    """RabbitMQ with its own defaults, on loopback; its node and its data belong to this run alone."""
    directory.mkdir()
    (directory / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
    (directory / "plugins").write_text("[].\n")
    environment = {
        "HOME": str(directory),
        "RABBITMQ_NODENAME": f"peers{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    return Part("RabbitMQ", [str(RABBITMQ)], directory / "out.log", listens(port), **environment)


def redis(directory: Path, port: int) -> Part:
    """Redis with its log on disk, flushed every second: by default it only saves a snapshot now and then."""
    directory.mkdir()
    command = [
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--dir",
        str(directory),
        "--appendonly",
        "yes",
    ]
    return Part("Redis", command, directory / "out.log", listens(port))
