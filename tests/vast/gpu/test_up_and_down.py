"""`make gpu-up` to an answered ticket and `make gpu-down`, as a user types them."""

import contextlib
import time
from pathlib import Path
from typing import Any

import httpx

from tests.vast.fake import FakeVast
from tests.vast.targets import ROOT, Running, is_up, make

STEPS = ("preflight", "service", "instance", "triton", "models", "tunnel", "health", "ticket")


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
    token = gpu_env["HF_TOKEN"]
    for secret in (token, vast.api_key):
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
        assert token not in file.read_text(errors="replace"), file
        assert vast.api_key not in file.read_text(errors="replace"), file


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


def test_what_a_failed_create_made_after_all_is_named(vast: FakeVast, gpu_env: dict[str, str], tmp_path: Path) -> None:
    """The first create answers 503 and shows nothing, so a second one is sent; then the first turns up."""
    vast.faults.create_unavailable_empty = 1
    running = Running(gpu_env, "gpu-up")
    running.until("so far")
    [intent] = (tmp_path / "local/vast").glob("intent-*.json")
    late = vast.rent(label=f"triton-tickets-{intent.stem.removeprefix('intent-')}")["id"]
    assert running.wait() == 0, running.output
    assert f"note: instance {late} costs money too" in running.output
    assert f"`make destroy-instance CONTRACT_ID={late}` ends it" in running.output
