"""What `make gpu-up` lacks is said before anything is rented."""

import os
from pathlib import Path

import pytest

from tests.vast.fake import FakeVast
from tests.vast.targets import make


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"VAST_API_KEY": ""}, "There is no Vast.ai API key"),
        ({"VAST_API_KEY": "wrong"}, "does not accept the API key"),
        ({"SSH_KEY": "/nowhere/key"}, "There is no SSH key pair"),
        ({"DEFINITION": "/nowhere.yaml"}, "definition nowhere.yaml cannot be read"),
        ({"MODELS": "nosuch"}, "nosuch"),
        ({"MAX_PRICE": "0.01"}, "max_price"),
        ({"API_URL": "https://tickets.example:1"}, "only one on this machine can be started"),
        ({"VAST_URL": "http://127.0.0.1:9"}, "Vast.ai cannot be reached"),
        ({"CONTRACT_ID": "17"}, "There is no instance 17"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_rented(
    vast: FakeVast, gpu_env: dict[str, str], changes: dict[str, str], said: str
) -> None:
    up = make(gpu_env | changes, "gpu-up")
    assert up.returncode != 0
    assert said in up.stderr
    assert "Traceback" not in up.stderr
    assert vast.instances() == []
    assert vast.calls("PUT", "/asks/") == []


@pytest.mark.parametrize(("program", "said"), [("ssh", "`ssh` is not installed"), ("rsync", "`rsync` is not inst")])
def test_a_machine_without_ssh_or_rsync(
    vast: FakeVast, gpu_env: dict[str, str], tmp_path: Path, program: str, said: str
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "bash", "sh", "ssh", "ssh-keygen", "ssh-add", "rsync"):
        if name != program:
            (tools / name).symlink_to(f"/usr/bin/{name}")
    up = make(gpu_env | {"PATH": str(tools)}, "gpu-up")
    assert up.returncode != 0
    assert said in up.stderr
    assert vast.instances() == []


def test_a_key_with_a_passphrase_is_refused_before_it_costs(
    vast: FakeVast, gpu_env: dict[str, str], ssh_key: Path
) -> None:
    locked = ssh_key.with_name("locked")
    os.system(f"ssh-keygen -q -t ed25519 -N secret-phrase -f {locked}")
    up = make(gpu_env | {"SSH_KEY": str(locked)}, "gpu-up")
    assert "has a passphrase and is not loaded: `ssh-add" in up.stderr
    assert vast.calls("PUT", "/asks/") == []
