"""A simulated Vast.ai for all tests of this directory, and the environment of a user who rents there."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from vastai import VastAI

from tests.vast.fake import FakeVast
from tests.vast.fake.prerequisites import obstacle, tool

# Of the environment the tests run in, these would reach the code under test.
FOREIGN = (
    "VAST_",
    "VASTAI_",
    "SSH_",
    "HF_",
    "API_",
    "TRITON_",
    "MAKE",
    "MODELS",
    "INSTANCE_ID",
    "CONTRACT_ID",
    "MAX_PRICE",
)


@pytest.fixture(scope="session")
def simulated_vast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVast]:
    missing = obstacle()
    if missing:
        pytest.skip(missing)
    with FakeVast(tmp_path_factory.mktemp("vast")) as running:
        yield running


@pytest.fixture
def vast(simulated_vast: FakeVast) -> Iterator[FakeVast]:
    """The service with all its offers and no instance."""
    simulated_vast.boot_seconds = 0.2
    yield simulated_vast
    simulated_vast.reset()


@pytest.fixture
def ssh_key(tmp_path: Path) -> Path:
    """A private key, its public half beside it."""
    key = tmp_path / "ssh" / "id_ed25519"
    key.parent.mkdir(mode=0o700)
    subprocess.run(
        [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(key)],
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return key


@pytest.fixture
def vast_env(vast: FakeVast, ssh_key: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that is to meet the simulated service and nothing of this user's home."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    homes = {f"XDG_{name}_HOME": str(tmp_path / "xdg" / name.lower()) for name in ("CONFIG", "CACHE", "STATE")}
    return {
        **inherited,
        **homes,
        "VAST_URL": vast.url,
        "VAST_API_KEY": vast.api_key,
        "SSH_KEY": str(ssh_key),
        "LOCAL_DIR": str(tmp_path / "local"),
        "VASTAI_NO_UPDATE_CHECK": "1",
        "VAST_POLL_SECONDS": "0.3",
    }


@pytest.fixture
def sdk(vast: FakeVast) -> VastAI:
    """The SDK without its retries."""
    return VastAI(api_key=vast.api_key, server_url=vast.url, retry=1)


@pytest.fixture
def http(vast: FakeVast) -> Iterator[httpx.Client]:
    """The bare API."""
    headers = {"Authorization": f"Bearer {vast.api_key}"}
    with httpx.Client(base_url=vast.url, headers=headers, trust_env=False) as client:
        yield client
