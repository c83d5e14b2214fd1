"""`make gpu-up` that does not come to its end says what costs money and how that ends."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from app.config import Settings
from nvidia_triton.local.settings import free_ports
from tests.conftest import cloned_database
from tests.postgres_server import RunningPostgres
from tests.service import Process
from tests.vast.fake import FakeVast
from tests.vast.targets import ROOT, Running, is_up, make


@pytest_asyncio.fixture(scope="module")
async def api_url(
    postgres: RunningPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """An API that is there before gpu-up, which then starts none."""
    [port] = free_ports(1)
    log = tmp_path_factory.mktemp("api") / "api.log"
    async with (
        cloned_database(postgres, template) as database_url,
        Process("app.main", Settings(database_url=database_url, triton_urls=(), api_port=port), log) as process,
    ):
        await process.says("Uvicorn running")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def env_with_api(gpu_env: dict[str, str], api_url: str) -> dict[str, str]:
    return gpu_env | {"API_URL": api_url}


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


def test_one_gpu_up_at_a_time(vast: FakeVast, env_with_api: dict[str, str]) -> None:
    vast.boot_seconds = 60
    running = Running(env_with_api, "gpu-up")
    running.until("is being made")
    second = make(env_with_api, "gpu-up")
    assert "Another gpu-up, gpu-down or create-instance" in second.stderr
    running.signal(signal.SIGTERM)
    assert "Interrupted." in running.output


def test_an_instance_that_cannot_run_is_named_until_it_is_destroyed(
    vast: FakeVast, env_with_api: dict[str, str]
) -> None:
    vast.faults.end_state = "exited"
    for _ in range(2):
        up = make(env_with_api, "gpu-up")
        ident = vast.instances()[0]["id"]
        assert up.returncode != 0
        assert f"`make destroy-instance CONTRACT_ID={ident}` ends it" in up.stderr
        assert "unsatisfied condition" in up.stderr
    assert make(env_with_api, "gpu-down").returncode == 0
    assert vast.instances() == []


def test_a_failure_on_the_instance_says_what_costs_and_how_it_ends(
    vast: FakeVast, env_with_api: dict[str, str], tmp_path: Path
) -> None:
    definition = yaml.safe_load((ROOT / "nvidia_triton" / "vastai_instance_definition.yaml").read_text())
    definition["triton"]["flags"].append("--no-such-flag")
    file = tmp_path / "definition.yaml"
    file.write_text(yaml.safe_dump(definition))
    up = make(env_with_api | {"DEFINITION": str(file)}, "gpu-up")
    ident = vast.instances()[0]["id"]
    assert "Triton ended at its start" in up.stderr
    assert f"Instance {ident} exists and costs money at $0.237 an hour" in up.stderr
    assert f"`make destroy-instance CONTRACT_ID={ident}` ends it" in up.stderr


def test_an_instance_of_another_checkout_is_named_before_a_second_is_rented(
    vast: FakeVast, env_with_api: dict[str, str]
) -> None:
    """As when .local/ was deleted while it ran."""
    forgotten = vast.rent(label="triton-tickets-0badcafe")["id"]
    vast.faults.end_state = "exited"
    up = make(env_with_api, "gpu-up")
    assert f"note: instance {forgotten} has this project's label" in up.stdout
    assert f"`make gpu-up CONTRACT_ID={forgotten}` uses it" in up.stdout
