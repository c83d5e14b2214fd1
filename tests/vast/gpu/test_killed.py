"""`make gpu-up`, killed at every step, goes on where it was."""

import signal
import time
from collections.abc import Sequence

import pytest

from tests.rotation import third_of
from tests.vast.fake import FakeVast
from tests.vast.kit import until
from tests.vast.targets import Running, is_up, make

STEPS = ("preflight", "service", "instance", "triton", "models", "tunnel", "health", "ticket")
# While the service starts, while Vast.ai makes the instance, while it boots, while Triton starts and loads.
MOMENTS = ("waiting for the API", "offer 91", "so far", "✓ instance", "✓ triton")


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
