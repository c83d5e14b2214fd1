"""The Makefiles: every target is there, in both directories, and hands its variables on untouched."""

import re
import subprocess
from pathlib import Path

import pytest

from nvidia_triton.vast.cli import app
from tests.vast.fake import FakeVast
from tests.vast.targets import ROOT, make

TARGETS = (
    "search-instance", "create-instance", "ssh-instance", "run-tritonserver", "ssh-tunnels-tritonserver",
    "stop-tunnels", "deploy-models-tritonserver", "check-health-tritonserver", "check-logs-tritonserver",
    "check-model-stats-tritonserver", "list-instances", "stop-instance", "start-instance", "destroy-instance",
    "gpu-up", "gpu-down",
)  # fmt: skip


def test_every_command_has_its_target() -> None:
    commands = {str(each.callback.__name__).replace("_", "-") for each in app.registered_commands if each.callback}
    assert commands == set(TARGETS)


@pytest.mark.parametrize("directory", [ROOT, ROOT / "nvidia_triton"])
def test_the_targets_work_at_both_places(directory: Path) -> None:
    shown = subprocess.run(["make", "help"], cwd=directory, capture_output=True, text=True, check=True).stdout
    assert set(TARGETS) <= set(re.findall(r"^  make (\S+)", shown, re.MULTILINE))
    command = ["make", "-n", "--old-file=install", "gpu-up"]
    planned = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout
    assert "python -m nvidia_triton.vast gpu-up" in planned


@pytest.mark.parametrize("target", ["ssh-instance", "destroy-instance", "stop-tunnels", "gpu-down"])
def test_a_variable_never_reaches_a_shell(
    vast: FakeVast, vast_env: dict[str, str], tmp_path: Path, target: str
) -> None:
    trap = tmp_path / "trapped"
    done = make(vast_env, target, CONTRACT_ID=f"1; touch {trap}")
    assert done.returncode != 0
    assert "is not a contract id, which is a number" in done.stderr
    assert not trap.exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("create-instance", "INSTANCE_ID= is not the id of an offer"),
        ("run-tritonserver", "This checkout has rented no instance: `make gpu-up`"),
        ("deploy-models-tritonserver", "This checkout has rented no instance"),
        ("ssh-tunnels-tritonserver", "This checkout has rented no instance"),
        ("check-logs-tritonserver", "This checkout has rented no instance"),
        ("check-model-stats-tritonserver", "there is no tunnel"),
    ],
)
def test_without_an_instance_a_sentence_says_what_to_do(
    vast: FakeVast, vast_env: dict[str, str], target: str, said: str
) -> None:
    done = make(vast_env, target)
    assert done.returncode != 0
    assert said.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert vast.instances() == []


def test_the_key_of_the_vastai_command_is_found(vast: FakeVast, vast_env: dict[str, str]) -> None:
    file = Path(vast_env["XDG_CONFIG_HOME"]) / "vastai" / "vast_api_key"
    file.parent.mkdir(parents=True)
    file.write_text(f"{vast.api_key}\n")
    done = make(vast_env | {"VAST_API_KEY": ""}, "list-instances")
    assert "No instance of this project is rented." in done.stdout, done.stderr


def test_interrupted_before_it_has_begun(vast_env: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C while the programs' libraries are still read."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    made = make(vast_env | {"PYTHONPATH": str(tmp_path)}, "gpu-up")
    assert made.returncode != 0
    assert made.stderr.startswith("Interrupted before anything was done.\n")
    assert "Traceback" not in made.stderr
