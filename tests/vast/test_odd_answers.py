"""Answers of Vast.ai that are not what they should be: nothing is believed gone, or rented twice, for their sake."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nvidia_triton.vast import costs, instances, startup
from nvidia_triton.vast.context import Context
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.progress import PrintedWork
from nvidia_triton.vast.vast import Unavailable, VastClient
from nvidia_triton.vast.wiring import open_context
from tests.vast.fake import FakeVast
from tests.vast.kit import public
from tests.vast.targets import make

OFFER = 9101002
FOR_EVER = 10_000
HTML = "<html><body>Not Found</body></html>"


@pytest.fixture
def context(vast_env: dict[str, str]) -> Context:
    opened = open_context(vast_env)
    quick = dataclasses.replace(opened.settings, poll_seconds=0.02)
    return dataclasses.replace(opened, settings=quick, work=PrintedWork(Console(file=io.StringIO(), width=300)))


@pytest.fixture
def client(context: Context) -> VastClient:
    return VastClient(context.settings)


def answer(vast: FakeVast, path: str, status: int, body: str, count: int = FOR_EVER) -> None:
    vast.faults.paths, vast.faults.odd = path, count
    vast.faults.odd_status, vast.faults.odd_body = status, body


SHAPES = [(200, HTML), (404, HTML), (502, HTML), (200, "{}"), (200, "[]"), (200, '{"instances": "soon"}'), (200, "")]


@pytest.mark.parametrize(("status", "body"), SHAPES)
def test_an_answer_that_says_nothing_is_not_taken_for_an_instance_that_is_gone(
    vast: FakeVast, context: Context, client: VastClient, status: int, body: str
) -> None:
    ident = instances.create(context, client, OFFER)
    vast.faults.destroy_ignored = FOR_EVER
    answer(vast, "/instances/", status, body)
    for ask in (
        lambda: instances.find(context, client),
        lambda: instances.recover(context, client),
        lambda: instances.resolve(context, client, str(ident)),
        lambda: startup.wait_until_ready(context, client, ident),
    ):
        with pytest.raises(Unavailable):
            ask()
    with pytest.raises(TargetError, match="STILL COSTS MONEY"):
        instances.destroy(context, client, ident)
    assert instances.known_ids(context) == {ident}


def test_a_destroy_that_finds_nothing_is_not_believed_while_it_is_listed(
    vast: FakeVast, context: Context, client: VastClient
) -> None:
    """One part of the service no longer knows it, the list does, and so does the bill."""
    ident = instances.create(context, client, OFFER)
    answer(vast, f"/api/v0/instances/{ident}/", 404, '{"error": "no_such_instance", "msg": "not found"}')
    with pytest.raises(TargetError, match="STILL COSTS MONEY"):
        instances.destroy(context, client, ident)
    assert instances.known_ids(context) == {ident}
    assert instances.resolve(context, client, str(ident)).id == ident


def test_a_list_that_lags_behind_hides_nothing(vast: FakeVast, context: Context, client: VastClient) -> None:
    ident = instances.create(context, client, OFFER)
    vast.faults.unlisted = FOR_EVER
    assert [each.id for each in instances.find(context, client).here] == [ident]
    assert [each.id for each in instances.recover(context, client)] == [ident]
    assert instances.resolve(context, client, None).id == ident
    instances.destroy(context, client, ident)
    assert vast.instances() == []


def test_gpu_down_ends_an_instance_that_the_list_does_not_show(
    vast: FakeVast, vast_env: dict[str, str], context: Context, client: VastClient
) -> None:
    instances.create(context, client, OFFER)
    vast.faults.unlisted = FOR_EVER
    down = make(vast_env, "gpu-down")
    assert (down.returncode, vast.instances()) == (0, []), down.stdout


@pytest.mark.parametrize(
    "row",
    [
        {"num_gpus": "1", "dph_total": "0.41", "start_date": "1795210252.0", "disk_space": "80"},
        {"num_gpus": None, "dph_total": None, "start_date": None, "gpu_name": None, "status_msg": None},
        {"dph_total": "NaN", "num_gpus": "many", "start_date": [], "storage_cost": {}},
        {"ports": None},
        {"ports": []},
        {"ports": {"22/tcp": None}},
        {"ports": {"22/tcp": [None]}},
        {"ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": None}]}},
        {"ports": {"22/tcp": [{"HostPort": "none yet"}]}, "public_ipaddr": 7},
    ],
)
def test_rows_with_holes_and_texts_for_numbers_are_read(
    vast: FakeVast, context: Context, client: VastClient, row: dict[str, Any], ssh_key: Path
) -> None:
    ident = vast.rent(public(ssh_key), label=instances.PREFIX + "00000000")["id"]
    vast.faults.row = row
    found = instances.look(client, ident)
    assert found is not None
    assert found.addresses[-1].port == vast.host(ident).proxy_port
    assert [each.id for each in client.instances()] == [ident]
    assert costs.summary(found)
    assert found.hourly >= 0
    assert found.spent >= 0


def test_a_search_that_is_answered_otherwise_is_repeated(vast: FakeVast, client: VastClient) -> None:
    answer(vast, "/bundles/", 200, '{"success": true}', count=2)
    assert client.offers("rentable=true", storage=80)
    answer(vast, "/bundles/", 200, "null")
    with pytest.raises(Unavailable, match="that is not Vast"):
        client.offers("rentable=true", storage=80)


def test_the_pause_that_a_429_asks_for_is_kept(vast: FakeVast, client: VastClient) -> None:
    vast.faults.rate_limited, vast.faults.retry_after = 1, "1"
    client.instances()
    first, second = vast.calls("GET", "/instances/")
    assert 1.0 <= second.at - first.at < 3.0


def test_a_damaged_record_of_a_create_still_finds_what_it_made(
    vast: FakeVast, context: Context, client: VastClient, ssh_key: Path
) -> None:
    ident = vast.rent(public(ssh_key), label=instances.PREFIX + "0badcafe")["id"]
    context.state.prepare().file("intent-0badcafe.json").write_text('{"label": ')
    assert [each.id for each in instances.find(context, client).here] == [ident]
    assert f"labelled {instances.PREFIX}0badcafe" in instances.left_running(context)
    assert [each.id for each in instances.recover(context, client)] == [ident]
    context.state.file(f"contract-{ident}.json").write_text('{"label": 7, "hourly": "cheap"}')
    assert f"Instance {ident} exists" in instances.left_running(context)
    assert instances.resolve(context, client, None).id == ident


def test_a_stopped_instance_costs_what_its_disk_costs(
    vast: FakeVast, vast_env: dict[str, str], context: Context, client: VastClient
) -> None:
    ident = instances.create(context, client, OFFER)
    startup.wait_until_ready(context, client, ident)
    stopped = make(vast_env, "stop-instance")
    assert "$0.017 an hour for its disk" in stopped.stdout  # 80 GB at $0.15 a month
    assert "costs money at $0.017 an hour" in instances.left_running(context)
    listed = make(vast_env, "list-instances").stdout
    row = next(line for line in listed.splitlines() if str(ident) in line)
    assert "0.017" in row
    assert "0.377" not in row
    assert "at most $0.0" in row
    down = make(vast_env, "gpu-down")
    assert "destroyed: at most $0.0" in down.stdout


def test_one_that_vast_stopped_for_want_of_money(vast: FakeVast, vast_env: dict[str, str], context: Context) -> None:
    client = VastClient(context.settings)
    ident = instances.create(context, client, OFFER)
    startup.wait_until_ready(context, client, ident)
    vast.stop(ident)
    vast.faults.start_refused = FOR_EVER
    started = make(vast_env, "start-instance")
    assert started.returncode != 0
    assert "Your account lacks credit" in started.stderr
    assert f"`make destroy-instance CONTRACT_ID={ident}` ends it" in started.stderr
    listed = make(vast_env, "list-instances").stdout
    assert "stopped" in listed


def test_an_instance_destroyed_elsewhere_is_not_said_to_cost(
    vast: FakeVast, vast_env: dict[str, str], context: Context, client: VastClient
) -> None:
    ident = instances.create(context, client, OFFER)
    vast.vanish(ident)
    assert "There is no instance" in make(vast_env, "destroy-instance", CONTRACT_ID=ident).stderr
    assert instances.left_running(context) == ""


def test_a_create_nobody_knows_the_end_of_is_named(vast: FakeVast, vast_env: dict[str, str], context: Context) -> None:
    client = VastClient(context.settings)
    vast.faults.create_unavailable_empty = 1
    with pytest.raises(instances.NotMade):
        instances.create(context, client, OFFER)
    down = make(vast_env, "gpu-down")
    assert down.returncode != 0
    assert "may exist" in down.stderr
    assert "nothing to pay for" not in down.stdout
    listed = make(vast_env, "list-instances")
    assert "may exist" in listed.stdout
