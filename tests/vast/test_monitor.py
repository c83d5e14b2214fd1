"""Health and statistics, read through the tunnel."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from nvidia_triton.vast import monitor, remote, tunnel
from nvidia_triton.vast.deploy import deploy
from nvidia_triton.vast.errors import TargetError
from tests.vast.fake import FakeVast
from tests.vast.kit import until
from tests.vast.rented import Rented, rent


@pytest.fixture
def rented(vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> Iterator[Rented]:
    """With a Triton that serves nothing yet; no tunnel outlives the test."""
    made = rent(vast, vast_env, tmp_path / "checkout")
    remote.run_tritonserver(made.context, made.instance)
    yield made
    tunnel.stop(made.context, None)


def test_without_a_tunnel(rented: Rented) -> None:
    assert monitor.health(rented.context, None) == (
        False,
        "there is no tunnel to any instance: start one with `make ssh-tunnels-tritonserver`",
    )
    with pytest.raises(TargetError, match=r"there is no tunnel to instance 5:.*CONTRACT_ID=5"):
        monitor.model_stats(rented.context, 5)


def test_health_from_nothing_to_ready_to_gone(rented: Rented) -> None:
    context, instance = rented.context, rented.instance
    tunnel.start(context, instance)
    healthy, reason = monitor.health(context, instance.id)
    assert not healthy
    assert f"no model is ready; `make deploy-models-tritonserver CONTRACT_ID={instance.id}`" in reason
    rented.add_model("one")
    deploy(context, instance, ["one"])
    assert monitor.health(context, None) == (True, f"{instance.name}: one ready")
    remote.stop(context, instance)
    healthy, reason = monitor.health(context, None)
    assert not healthy
    assert "the tunnel is up and Triton does not answer" in reason
    rented.vast.refuse(instance.id)
    rented.vast.cut(instance.id)
    until(lambda: "is being made anew" in monitor.health(context, None)[1], "the tunnel is down")
    assert not monitor.health(context, None)[0]


def test_statistics_count_requests_times_and_tokens(rented: Rented) -> None:
    context, instance = rented.context, rented.instance
    # Slow enough that the engine, which counts now and then, sees every request.
    rented.add_model("one", like="slow")
    rented.add_model("two", like="noop")
    deploy(context, instance, ["one", "two"])
    found = tunnel.start(context, instance)
    for _ in range(3):
        answer = httpx.post(
            f"http://127.0.0.1:{found.http_port}/v2/models/one/generate",
            json={
                "text_input": "Tell me a story.",
                "sampling_parameters": '{"max_tokens": 20, "ignore_eos": true}',
                "exclude_input_in_output": True,
            },
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text

    def cells() -> dict[str, list[str]]:
        output = io.StringIO()
        Console(file=output, width=200).print(monitor.model_stats(context, None))
        lines = [line.split("│")[1:-1] for line in output.getvalue().splitlines() if "│" in line]
        return {row[1].strip(): [cell.strip() for cell in row] for row in lines}

    until(lambda: cells()["one"][7] == "60", "the engine has counted its tokens")
    _, _, requests, failures, queue, compute, tokens_in, _ = cells()["one"]
    assert (requests, failures) == ("3", "0")
    assert float(queue) >= 0
    assert float(compute) > 0
    assert int(tokens_in) > 0
    assert cells()["two"][2:] == ["0", "0", "-", "-", "-", "-"]
