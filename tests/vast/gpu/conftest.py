"""The environment in which the targets start a service of their own."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvidia_triton.local.settings import free_ports
from tests.vast.kit import until
from tests.vast.targets import make


@pytest.fixture
def gpu_env(vast_env: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """Nothing of the checkout is used: the API and Postgres have ports of their own."""
    api, postgres = free_ports(2)
    environment = vast_env | {
        "API_URL": f"http://127.0.0.1:{api}",
        "POSTGRES_PORT": str(postgres),
        "HF_TOKEN": "hf_secret_token",
    }
    yield environment
    if list((tmp_path / "local" / "vast").glob("tunnel-*.json")):
        make(environment, "stop-tunnels")
    with contextlib.suppress(OSError, ValueError):
        pid = int((tmp_path / "local" / "run.lock").read_text())
        if b"nvidia_triton.local" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
            until(lambda: not Path(f"/proc/{pid}").exists(), "the service ends", 60)
