"""A real Gradio app, started once."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nvidia_triton.local.process import shielded
from nvidia_triton.local.settings import ROOT, free_ports

PYTHON = ROOT / ".venv-gradio" / "bin" / "python"
APP = Path(__file__).with_name("app.py")


class RunningApp:
    """One process of app.py; at `login_url` one has to log in."""

    def __init__(self, log: Path) -> None:
        if not PYTHON.exists():
            pytest.skip("NOT TESTED: there is no Gradio in .venv-gradio. `make install-gradio` installs it.")
        self._ports = free_ports(2)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url, self.login_url = (f"http://127.0.0.1:{port}" for port in self._ports)
        self.start()

    def start(self) -> None:
        """Start, or start again on the same ports; about 5 s, most of it to import Gradio."""
        environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        command = shielded([str(PYTHON), str(APP), *map(str, self._ports)])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while not self._is_ready():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.login_url}/gradio_api/app_id", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def gradio_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    app = RunningApp(tmp_path_factory.mktemp("gradio") / "app.log")
    yield app
    app.kill()
