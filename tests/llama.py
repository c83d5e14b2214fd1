"""llama.cpp's own HTTP server with the demo model, on a port of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from nvidia_triton.local.llama_server import LlamaServer
from nvidia_triton.local.process import shielded
from nvidia_triton.local.settings import ROOT, free_ports


class RunningLlama:
    """One server process; `options` are those of nvidia_triton/local/backend/llama_server.py."""

    def __init__(self, log: Path, *options: str) -> None:
        self.server = LlamaServer(ROOT / "models" / "demo", free_ports(1)[0], options)
        self.log_file = log
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start, or start again on the same port; about 2 s."""
        self.server.check()
        # Tests of the simulation ask for no model at all.
        environment = {name: value for name, value in os.environ.items() if name != "ENGINE"}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                shielded(self.server.command()), env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            assert self.running, self.log_file.read_text()
            assert time.monotonic() < deadline, self.log_file.read_text()
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


async def busy(server: RunningLlama, headers: dict[str, str] | None = None) -> int:
    """How many requests it works on, by its own slots."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        slots: list[dict[str, Any]] = (await http.get(f"{server.url}/slots", headers=headers)).raise_for_status().json()
    return sum(slot["is_processing"] for slot in slots)
