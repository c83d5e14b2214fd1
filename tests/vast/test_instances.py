"""An instance's life: made once whatever the answer, found again, watched, ended for good."""

import dataclasses
import io
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nvidia_triton.vast import costs, instances, startup
from nvidia_triton.vast.context import Context
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.progress import PrintedWork
from nvidia_triton.vast.vast import OfferGone, Refused, Unavailable, VastClient
from nvidia_triton.vast.wiring import open_context
from tests.vast.fake import FakeVast
from tests.vast.kit import public, until
from tests.vast.targets import Running, make

OFFER = 9101002
TOKEN = "hf_secret_token"


@pytest.fixture
def context(vast_env: dict[str, str]) -> Context:
    opened = open_context(vast_env | {"HF_TOKEN": TOKEN})
    return dataclasses.replace(opened, work=PrintedWork(Console(file=io.StringIO(), width=300)))


@pytest.fixture
def client(context: Context) -> VastClient:
    return VastClient(context.settings)


def with_deadlines(context: Context, **minutes: float) -> Context:
    deadlines = context.definition.deadline_minutes.model_copy(update=minutes)
    return dataclasses.replace(
        context, definition=context.definition.model_copy(update={"deadline_minutes": deadlines})
    )


def said(context: Context) -> str:
    assert isinstance(context.work, PrintedWork)
    output = context.work.console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


@contextmanager
def fails(kind: type[TargetError] = TargetError) -> Iterator[list[str]]:
    """The text of the error, which holds no secret."""
    texts: list[str] = []
    with pytest.raises(kind) as raised:
        yield texts
    texts.append(str(raised.value))
    assert TOKEN not in texts[0]
    assert "simulated-key" not in texts[0]


def nothing_is_on_record(context: Context) -> bool:
    return not context.state.names(instances.INTENT) and not instances.known_ids(context)


def test_a_created_instance_is_labelled_and_on_record(vast: FakeVast, context: Context, client: VastClient) -> None:
    ident = instances.create(context, client, OFFER)
    row = vast.instance(ident)
    assert row is not None
    assert row["label"].startswith(instances.PREFIX)
    assert context.state.read(f"contract-{ident}")["label"] == row["label"]
    assert not context.state.names(instances.INTENT)
    body = vast.calls("PUT", "/asks/")[0].body
    assert body["env"] == {"TZ": "UTC", "HF_TOKEN": TOKEN}
    assert (body["disk"], body["runtype"], body["cancel_unavail"]) == (80.0, "ssh_direc ssh_proxy", True)
    assert body["onstart"] == context.definition.onstart
    assert context.state.directory.stat().st_mode & 0o777 == 0o700


def test_waiting_ends_when_ssh_answers(vast: FakeVast, context: Context, client: VastClient, ssh_key: Path) -> None:
    vast.boot_seconds = 1.0
    ident = instances.create(context, client, OFFER)
    instance = startup.wait_until_ready(context, client, ident)
    assert instance.status == "running"
    assert vast.calls("POST", f"/instances/{ident}/ssh/")[0].body == {"ssh_key": public(ssh_key).strip()}
    assert "is loading (pulling" in said(context)
    assert "so far" in said(context)


@pytest.mark.parametrize("fault", ["create_unavailable", "create_cut"])
def test_a_create_whose_answer_is_lost_makes_one_instance(
    vast: FakeVast, context: Context, client: VastClient, fault: str
) -> None:
    setattr(vast.faults, fault, 1)
    ident = instances.create(context, client, OFFER)
    assert [row["id"] for row in vast.instances()] == [ident]
    assert len(vast.calls("PUT", "/asks/")) == 1
    assert instances.known_ids(context) == {ident}
    assert not context.state.names(instances.INTENT)


def test_a_create_that_made_nothing_says_so(vast: FakeVast, context: Context, client: VastClient) -> None:
    vast.faults.create_unavailable_empty = 1
    with fails(instances.NotMade) as text:
        instances.create(context, client, OFFER)
    assert "no instance with the label triton-tickets-" in text[0]
    assert vast.instances() == []
    # It may still turn up, and is known then.
    assert len(context.state.names(instances.INTENT)) == 1


@pytest.mark.parametrize(
    ("faults", "kind", "text"),
    [
        ({"offers_gone": 1}, OfferGone, "This offer is not to be had"),
        ({"create_refused": 1}, Refused, "Vast.ai refuses: Your account lacks credit."),
        ({"rate_limited": 1, "paths": "/asks/"}, Unavailable, "asks for fewer calls"),
    ],
)
def test_a_create_that_is_turned_away_leaves_nothing(
    vast: FakeVast, context: Context, client: VastClient, faults: dict[str, Any], kind: type[TargetError], text: str
) -> None:
    for name, value in faults.items():
        setattr(vast.faults, name, value)
    with fails(kind) as raised:
        instances.create(context, client, OFFER)
    assert text in raised[0]
    assert nothing_is_on_record(context)
    assert vast.instances() == []


def test_two_instances_of_one_create_become_one(
    vast: FakeVast, context: Context, client: VastClient, ssh_key: Path
) -> None:
    label = instances.PREFIX + "0badcafe"
    for _ in range(2):
        vast.rent(public(ssh_key), label=label)
    context.state.write("intent-0badcafe", {"label": label, "at": 0})
    assert [each.label for each in instances.recover(context, client)] == [label]
    assert len(vast.instances()) == 1
    assert instances.known_ids(context) == {vast.instances()[0]["id"]}


def test_a_create_killed_on_its_way_is_found_again(
    vast: FakeVast, vast_env: dict[str, str], context: Context, client: VastClient
) -> None:
    vast.faults.create_seconds = 30.0
    running = Running(vast_env, "create-instance", INSTANCE_ID=OFFER)
    until(vast.instances, "the create arrives")
    running.signal(signal.SIGKILL)
    vast.faults.create_seconds = 0.0
    assert context.state.names(instances.INTENT)
    found = instances.recover(context, client)
    assert [each.id for each in found] == [row["id"] for row in vast.instances()]
    assert not context.state.names(instances.INTENT)


@pytest.mark.parametrize("state", ["exited", "offline", "unknown"])
def test_a_state_that_never_runs_fails_at_once_with_vasts_words(
    vast: FakeVast, context: Context, client: VastClient, state: str
) -> None:
    vast.faults.end_state = state
    ident = instances.create(context, client, OFFER)
    with fails() as text:
        startup.wait_until_ready(context, client, ident)
    assert f"Instance {ident} is {state} and will not run" in text[0]
    assert "unsatisfied condition: cuda>=13.0" in text[0]
    assert f"`make destroy-instance CONTRACT_ID={ident}`" in text[0]


def test_one_that_loads_for_ever_meets_the_deadline(vast: FakeVast, context: Context, client: VastClient) -> None:
    vast.faults.end_state = "loading"
    hasty = with_deadlines(context, running=0.02)
    ident = instances.create(hasty, client, OFFER)
    with fails() as text:
        startup.wait_until_ready(hasty, client, ident)
    assert f"Instance {ident} is still loading after 0.02 minutes" in text[0]
    assert f"`make destroy-instance CONTRACT_ID={ident}`" in text[0]


def test_a_key_that_comes_late_is_waited_for(vast: FakeVast, context: Context, client: VastClient) -> None:
    vast.faults.ssh_key_seconds = 600.0
    ident = instances.create(context, client, OFFER)

    def arrives() -> None:
        until(lambda: "the SSH key is on its way" in said(context), "is told that the key is late")
        vast.faults.ssh_key_seconds = 0.0

    with ThreadPoolExecutor(1) as thread:
        arrived = thread.submit(arrives)
        assert startup.wait_until_ready(context, client, ident).id == ident
        arrived.result()


def test_a_key_that_never_comes_meets_the_deadline(vast: FakeVast, context: Context, client: VastClient) -> None:
    vast.faults.ssh_key_seconds = 600.0
    hasty = with_deadlines(context, ssh=0.02)
    ident = instances.create(hasty, client, OFFER)
    with fails() as text:
        startup.wait_until_ready(hasty, client, ident)
    assert "refuses the SSH key" in text[0]
    assert f"`make destroy-instance CONTRACT_ID={ident}`" in text[0]


def test_one_that_vanishes_while_it_starts(vast: FakeVast, context: Context, client: VastClient) -> None:
    vast.faults.end_state = "loading"
    ident = instances.create(context, client, OFFER)
    vast.vanish(ident)
    with fails() as text:
        startup.wait_until_ready(context, client, ident)
    assert f"Instance {ident} is gone" in text[0]
    assert nothing_is_on_record(context)


@pytest.mark.parametrize("faults", [{"rate_limited": 3}, {"broken": 2}])
def test_reads_go_on_when_vast_is_in_trouble(
    vast: FakeVast, context: Context, client: VastClient, faults: dict[str, int]
) -> None:
    for name, value in faults.items():
        setattr(vast.faults, name, value)
    assert client.instances() == []
    assert len(vast.requests) == 1 + sum(faults.values())


def test_trouble_that_stays_is_an_error_of_one_sentence(vast: FakeVast, context: Context, client: VastClient) -> None:
    vast.faults.broken = 100
    with fails(Unavailable) as text:
        client.instances()
    assert "Vast.ai is in trouble (HTTP 500" in text[0]


def test_the_list_has_more_than_one_page(vast: FakeVast, context: Context) -> None:
    vast.boot_seconds = 60
    vast.offers.extend(
        {**vast.offers[0], "id": 9200000 + each, "ask_contract_id": 9200000 + each} for each in range(27)
    )
    quick = VastClient(dataclasses.replace(context.settings, poll_seconds=0.01))
    definition = context.definition
    made = [
        quick.create(9200000 + each, image=definition.image.name, disk=80, label="other", env={}, onstart="")
        for each in range(27)
    ]
    assert [each.id for each in quick.instances()] == made
    assert instances.find(context, quick) == instances.Ours((), ())


def test_which_instance_is_meant(vast: FakeVast, context: Context, client: VastClient, ssh_key: Path) -> None:
    with fails() as text:
        instances.resolve(context, client, None)
    assert "has rented no instance: `make gpu-up`" in text[0]

    stranger = vast.rent(public(ssh_key), label="somebody")["id"]
    with fails() as text:
        instances.resolve(context, client, str(stranger))
    assert "was not made by this project" in text[0]

    elsewhere = vast.rent(public(ssh_key), label=instances.PREFIX + "elsewhere")["id"]
    with fails() as text:
        instances.resolve(context, client, None)
    assert f"this checkout does not know have the project's label: {elsewhere}" in text[0]
    assert instances.resolve(context, client, str(elsewhere)).id == elsewhere

    first = instances.create(context, client, OFFER)
    assert instances.resolve(context, client, None).id == first
    second = instances.create(context, client, 9101003)
    with fails() as text:
        instances.resolve(context, client, None)
    assert f"CONTRACT_ID={first}" in text[0]
    assert f"CONTRACT_ID={second}" in text[0]
    for wrong, sentence in (("7x", "is not a contract id"), ("1", "There is no instance 1")):
        with fails() as text:
            instances.resolve(context, client, wrong)
        assert sentence in text[0]


@pytest.mark.parametrize("fault", ["destroy_refused", "destroy_ignored"])
def test_destroy_looks_until_it_is_gone(vast: FakeVast, context: Context, client: VastClient, fault: str) -> None:
    ident = instances.create(context, client, OFFER)
    setattr(vast.faults, fault, 2)
    instances.destroy(context, client, ident)
    assert vast.instances() == []
    assert nothing_is_on_record(context)


def test_one_that_cannot_be_destroyed_is_said_to_cost_money(
    vast: FakeVast, context: Context, client: VastClient
) -> None:
    ident = instances.create(context, client, OFFER)
    vast.faults.destroy_refused = 100
    with fails() as text:
        instances.destroy(context, client, ident)
    assert "STILL COSTS MONEY" in text[0]
    assert f"`make destroy-instance CONTRACT_ID={ident}`" in text[0]
    assert instances.known_ids(context) == {ident}


def test_a_stopped_instance_starts_again(vast: FakeVast, context: Context, client: VastClient) -> None:
    ident = instances.create(context, client, OFFER)
    startup.wait_until_ready(context, client, ident)
    client.stop(ident)
    stopped = instances.resolve(context, client, None)
    assert (costs.state_of(stopped), stopped.addresses) == ("stopped", ())
    client.start(ident)
    assert startup.wait_until_ready(context, client, ident, restarted=True).addresses


def test_calls_keep_the_distance_that_vast_asks_for(vast: FakeVast, context: Context) -> None:
    slow = VastClient(dataclasses.replace(context.settings, poll_seconds=0.5))
    for _ in range(4):
        slow.instances()
    first, *_, last = (request.at for request in vast.requests)
    assert last - first > 1.2  # three pauses of 0.5 s, less what the first call may have been late


def test_the_life_of_an_instance_through_the_targets(vast: FakeVast, vast_env: dict[str, str], ssh_key: Path) -> None:
    running = Running(vast_env | {"HF_TOKEN": TOKEN}, "create-instance", INSTANCE_ID=OFFER)
    running.until("CONTRACT_ID=")
    assert running.wait() == 0
    ident = vast.instances()[0]["id"]
    assert f"✓ instance  CONTRACT_ID={ident}: 1x RTX 4090, running, $0.377 an hour" in running.output
    elsewhere = vast.rent(public(ssh_key), label=instances.PREFIX + "elsewhere")["id"]
    listed = make(vast_env, "list-instances").stdout
    row, other = (next(line for line in listed.splitlines() if str(each) in line) for each in (ident, elsewhere))
    assert "this checkout" in row
    assert "unknown here" in other
    shell = make(vast_env, "ssh-instance")
    assert shell.returncode == 0, shell.stderr
    stopped = make(vast_env, "stop-instance")
    assert f"make start-instance CONTRACT_ID={ident}" in stopped.stdout, stopped.stderr
    assert "stopped" in make(vast_env, "list-instances").stdout
    assert make(vast_env, "start-instance").returncode == 0
    broken = vast_env | {"DEFINITION": "/nowhere.yaml"}
    ended = make(broken, "destroy-instance", CONTRACT_ID=ident)
    assert f"✓ instance  {ident} destroyed: about $0.0" in ended.stdout, ended.stderr
    again = make(vast_env, "destroy-instance", CONTRACT_ID=ident)
    assert (again.returncode != 0, f"There is no instance {ident}" in again.stderr) == (True, True)
    assert [row["id"] for row in vast.instances()] == [elsewhere]
    for text in (running.output, listed, ended.stdout):
        assert TOKEN not in text


def test_an_interrupted_wait_names_what_costs_money(vast: FakeVast, vast_env: dict[str, str]) -> None:
    vast.boot_seconds = 60
    running = Running(vast_env, "create-instance", INSTANCE_ID=OFFER)
    running.until("is being made")
    assert running.signal(signal.SIGINT) != 0
    ident = vast.instances()[0]["id"]
    assert f"Interrupted. Instance {ident} exists and costs money at $0.377 an hour" in running.output
    for way in ("`make gpu-up` goes on", f"`make destroy-instance CONTRACT_ID={ident}` ends it"):
        assert way in running.output
    assert "Traceback" not in running.output
