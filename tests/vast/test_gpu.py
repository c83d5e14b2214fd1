"""`make gpu-up` to an answered ticket and `make gpu-down`, as a user types them, and interrupted at every step."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from nvidia_triton.local.settings import free_ports
from tests.rotation import third_of
from tests.vast.fake import FakeVast
from tests.vast.kit import until
from tests.vast.targets import ROOT, Running, make

TOKEN = "hf_secret_token"
STEPS = ("preflight", "service", "instance", "triton", "models", "tunnel", "health", "ticket")
# While the service starts, while Vast.ai makes the instance, while it boots, while Triton starts and loads.
MOMENTS = ("waiting for the API", "offer 91", "so far", "✓ instance", "✓ triton")


@pytest.fixture
def gpu_env(vast_env: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """Nothing of the checkout is used: the API and Postgres have ports of their own."""
    api, postgres = free_ports(2)
    environment = vast_env | {
        "API_URL": f"http://127.0.0.1:{api}",
        "POSTGRES_PORT": str(postgres),
        "HF_TOKEN": TOKEN,
    }
    yield environment
    if list((tmp_path / "local" / "vast").glob("tunnel-*.json")):
        make(environment, "stop-tunnels")
    with contextlib.suppress(OSError, ValueError):
        pid = int((tmp_path / "local" / "run.lock").read_text())
        if b"nvidia_triton.local" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
            until(lambda: not Path(f"/proc/{pid}").exists(), "the service ends", 60)


def is_up(environment: dict[str, str]) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(environment["API_URL"] + "/health/ready", timeout=5, trust_env=False).is_success
    return False


def tickets(environment: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(environment["API_URL"] + "/results/", timeout=5, trust_env=False).json()
    return found


def command_lines() -> str:
    """Of all processes, as `ps` shows them."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(lines)


def test_from_an_api_key_to_an_answered_ticket_and_back(
    vast: FakeVast, gpu_env: dict[str, str], tmp_path: Path
) -> None:
    running = Running(gpu_env, "gpu-up")
    shown = ""
    while running.process.poll() is None:
        shown += command_lines()
        time.sleep(0.2)
    assert running.wait() == 0, running.output
    lines = [line.split()[1] for line in running.lines if line.startswith("✓")]
    assert lines == list(STEPS)
    assert "[simulated]" in running.output
    assert "spent so far" in running.output
    assert "`make gpu-down`" in running.output
    for secret in (TOKEN, vast.api_key):
        assert secret not in running.output
        assert secret not in shown
    assert len(vast.instances()) == 1
    assert is_up(gpu_env)

    again = make(gpu_env, "gpu-up", directory=ROOT / "nvidia_triton")
    assert again.returncode == 0, again.stderr
    assert "unchanged and ready" in again.stdout
    assert len(vast.calls("PUT", "/asks/")) == 1
    assert [result["status"] for result in tickets(gpu_env)] == ["completed"] * 2
    assert make(gpu_env, "check-health-tritonserver").stdout == "1\n"

    down = make(gpu_env, "gpu-down")
    assert down.returncode == 0, down.stderr
    assert "destroyed: about $0.0" in down.stdout
    assert vast.instances() == []
    assert not is_up(gpu_env)
    unhealthy = make(gpu_env, "check-health-tritonserver")
    assert unhealthy.returncode != 0
    assert unhealthy.stdout.startswith("0\n")
    nothing = make(gpu_env, "gpu-down")
    assert nothing.returncode == 0
    assert "rented none, so there is nothing to pay for" in nothing.stdout
    for file in (path for path in (tmp_path / "local" / "vast").rglob("*") if path.is_file()):
        assert TOKEN not in file.read_text(errors="replace"), file
        assert vast.api_key not in file.read_text(errors="replace"), file


@pytest.mark.parametrize(
    "steps",
    [pytest.param(third_of(STEPS[:-1]), id="a third"), pytest.param(STEPS[:-1], id="all", marks=pytest.mark.long)],
)
def test_killed_after_a_step_it_goes_on(vast: FakeVast, gpu_env: dict[str, str], steps: Sequence[str]) -> None:
    for step in steps:
        running = Running(gpu_env, "gpu-up")
        running.until(f"✓ {step}")
        running.signal(signal.SIGKILL)
        assert len(vast.instances()) <= 1, step
    assert make(gpu_env, "gpu-up").returncode == 0
    assert len(vast.instances()) == 1
    assert len(vast.calls("PUT", "/asks/")) == 1
    assert make(gpu_env, "gpu-down").returncode == 0
    assert vast.instances() == []
    assert not is_up(gpu_env)


@pytest.mark.parametrize(
    "moments", [pytest.param(third_of(MOMENTS), id="a third"), pytest.param(MOMENTS, id="all", marks=pytest.mark.long)]
)
def test_killed_within_a_step_it_goes_on(vast: FakeVast, gpu_env: dict[str, str], moments: Sequence[str]) -> None:
    vast.boot_seconds = 8.0
    vast.faults.create_seconds = 2.0
    for moment in moments:
        running = Running(gpu_env, "gpu-up")
        running.until(moment)
        if moment == "offer 91":
            until(vast.instances, "the create arrives")
        time.sleep(0.3)
        running.signal(signal.SIGKILL)
    up = make(gpu_env, "gpu-up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert len(vast.instances()) == 1
    assert len(vast.calls("PUT", "/asks/")) == 1
    assert make(gpu_env, "gpu-down").returncode == 0
    assert vast.instances() == []


def test_ctrl_c_says_what_goes_on_costing(vast: FakeVast, gpu_env: dict[str, str]) -> None:
    vast.boot_seconds = 60
    running = Running(gpu_env, "gpu-up")
    running.until("is being made")
    running.signal(signal.SIGINT)
    ident = vast.instances()[0]["id"]
    assert f"Interrupted. Instance {ident} exists and costs money" in running.output
    assert is_up(gpu_env)
    down = make(gpu_env, "gpu-down")
    assert down.returncode == 0, down.stderr
    assert vast.instances() == []
    assert not is_up(gpu_env)


def test_gone_offers_and_lost_answers_on_the_way(vast: FakeVast, gpu_env: dict[str, str]) -> None:
    vast.faults.offers_gone = 2
    vast.faults.create_unavailable_empty = 1
    vast.faults.create_unavailable = 1
    vast.faults.ssh_key_seconds = 1.0
    up = make(gpu_env, "gpu-up")
    assert up.returncode == 0, up.stderr
    assert up.stdout.count("is gone; the next one") == 2
    assert [row["gpu_name"] for row in vast.instances()] == ["RTX 4090"]
    assert make(gpu_env, "gpu-down").returncode == 0
    assert vast.instances() == []


def test_an_instance_that_cannot_run_is_named_until_it_is_destroyed(vast: FakeVast, gpu_env: dict[str, str]) -> None:
    vast.faults.end_state = "exited"
    for _ in range(2):
        up = make(gpu_env, "gpu-up")
        ident = vast.instances()[0]["id"]
        assert up.returncode != 0
        assert f"`make destroy-instance CONTRACT_ID={ident}` ends it" in up.stderr
        assert "unsatisfied condition" in up.stderr
    assert make(gpu_env, "gpu-down").returncode == 0
    assert vast.instances() == []


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


def test_a_failure_on_the_instance_says_what_costs_and_how_it_ends(
    vast: FakeVast, gpu_env: dict[str, str], tmp_path: Path
) -> None:
    definition = yaml.safe_load((ROOT / "nvidia_triton" / "vastai_instance_definition.yaml").read_text())
    definition["triton"]["flags"].append("--no-such-flag")
    file = tmp_path / "definition.yaml"
    file.write_text(yaml.safe_dump(definition))
    up = make(gpu_env | {"DEFINITION": str(file)}, "gpu-up")
    ident = vast.instances()[0]["id"]
    assert "Triton ended at its start" in up.stderr
    assert f"Instance {ident} exists and costs money at $0.237 an hour" in up.stderr
    assert f"`make destroy-instance CONTRACT_ID={ident}` ends it" in up.stderr


def test_an_instance_of_another_checkout_is_named_before_a_second_is_rented(
    vast: FakeVast, gpu_env: dict[str, str]
) -> None:
    """As when .local/ was deleted while it ran."""
    forgotten = vast.rent(label="triton-tickets-0badcafe")["id"]
    vast.faults.end_state = "exited"
    up = make(gpu_env, "gpu-up")
    assert f"note: instance {forgotten} has this project's label" in up.stdout
    assert f"`make gpu-up CONTRACT_ID={forgotten}` uses it" in up.stdout


def test_what_a_failed_create_made_after_all_is_named(vast: FakeVast, gpu_env: dict[str, str], tmp_path: Path) -> None:
    """The first create answers 503 and shows nothing, so a second one is sent; then the first turns up."""
    vast.faults.create_unavailable_empty = 1
    running = Running(gpu_env, "gpu-up")
    running.until("is being made")
    [intent] = (tmp_path / "local/vast").glob("intent-*.json")
    late = vast.rent(label=f"triton-tickets-{intent.stem.removeprefix('intent-')}")["id"]
    assert running.wait() == 0, running.output
    assert f"note: instance {late} costs money too" in running.output
    assert f"`make destroy-instance CONTRACT_ID={late}` ends it" in running.output


def test_one_gpu_up_at_a_time(vast: FakeVast, gpu_env: dict[str, str]) -> None:
    vast.boot_seconds = 60
    running = Running(gpu_env, "gpu-up")
    running.until("is being made")
    second = make(gpu_env, "gpu-up")
    assert "Another gpu-up, gpu-down or create-instance" in second.stderr
    running.signal(signal.SIGTERM)
    assert "Interrupted." in running.output
