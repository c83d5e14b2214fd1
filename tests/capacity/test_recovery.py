"""What goes wrong with hosts: none is lost, none bills without reason, and no ticket is."""

from typing import Any

import pytest

from tests.capacity.conftest import Stage
from tests.service import eventually
from tests.vast.fake import FakeVast
from tests.vast.kit import public

pytestmark = pytest.mark.long
SECONDS = 120


async def answered(stage: Stage, ticket: str) -> dict[str, Any]:
    result = await stage.service.settled(ticket, SECONDS)
    assert result["status"] == "completed", result
    return result


async def all_ended(stage: Stage, vast: FakeVast) -> list[dict[str, Any]]:
    """The hosts once none is left, neither here nor there; the ledger has all that the provider counted."""

    async def ended() -> bool:
        return all(host["ended_at"] for host in await stage.hosts())

    await eventually(ended, "no host is left", SECONDS)
    assert vast.instances() == []
    hosts = await stage.hosts()
    assert vast.spent() <= sum(host["cost"] for host in hosts)
    assert (await stage.service.client.get("/servers/")).json() == []
    return hosts


async def in_state(stage: Stage, *states: str) -> dict[str, Any]:
    async def reached() -> dict[str, Any] | None:
        return next((host for host in await stage.hosts() if host["state"] in states), None)

    found: dict[str, Any] = await eventually(reached, f"a host is {states}", SECONDS, pause=0.01)
    return found


@pytest.mark.parametrize("state", ["creating", "booting", "deploying", "loading", "ready", "draining", "destroying"])
async def test_a_leader_killed_at_any_step_leaves_nothing_that_the_next_one_does_not_find(
    stage: Stage, vast: FakeVast, state: str
) -> None:
    vast.faults.create_seconds = 1.0
    vast.boot_seconds = 1.0
    vast.faults.destroy_ignored = 1
    async with stage.process() as first:
        ticket = await stage.sent()
        await in_state(stage, state)
        first.kill()
    async with stage.process():
        await answered(stage, ticket)
        hosts = await all_ended(stage, vast)
    assert [host["state"] for host in hosts] == ["gone"]
    assert len(vast.calls("PUT", "/asks/")) == 1


@pytest.mark.parametrize(("fault", "made"), [("create_cut", 1), ("create_unavailable", 1), ("offers_gone", 2)])
async def test_a_create_whose_answer_is_lost_or_that_fails_is_made_good(
    stage: Stage, vast: FakeVast, fault: str, made: int
) -> None:
    setattr(vast.faults, fault, 1)
    async with stage.process():
        await answered(stage, await stage.sent())
        hosts = await all_ended(stage, vast)
    assert (len(hosts), {host["state"] for host in hosts}) == (made, {"gone"})


async def test_a_create_that_made_nothing_and_was_not_answered_costs_until_that_is_known(
    stage: Stage, vast: FakeVast
) -> None:
    vast.faults.create_unavailable_empty = 1
    async with stage.process():
        await answered(stage, await stage.sent())
        hosts = await all_ended(stage, vast)
    assert len(hosts) == 2
    assert all(host["cost"] > 0 for host in hosts)


async def test_without_offers_a_ticket_says_what_removes_them_and_a_host_is_made_when_there_are_some(
    stage: Stage, vast: FakeVast
) -> None:
    offers, vast.offers[:] = list(vast.offers), []
    async with stage.process():
        ticket = await stage.sent()

        async def said() -> bool:
            waiting = (await stage.service.result(ticket))["waiting"]
            return bool(waiting) and waiting["reason"] == "no_offer"

        await eventually(said, "the ticket says that there is no offer")
        assert await stage.hosts() == []
        vast.offers[:] = offers
        await answered(stage, ticket)
        await all_ended(stage, vast)


async def test_a_host_that_does_not_start_is_ended_and_another_machine_taken(stage: Stage, vast: FakeVast) -> None:
    vast.faults.end_state = "exited"
    async with stage.process():
        ticket = await stage.sent()

        async def failed() -> dict[str, Any] | None:
            return next((host for host in await stage.hosts() if host["failure"]), None)

        first = await eventually(failed, "the host has failed", SECONDS)
        vast.faults.end_state = None
        assert "unsatisfied condition" in first["failure"]
        await answered(stage, ticket)
        hosts = await all_ended(stage, vast)
    served = next(host for host in hosts if host["generations"])
    assert served["machine"] != first["machine"]
    assert {host["state"] for host in hosts if host is not served} == {"failed"}


@pytest.mark.parametrize("way", ["vanish", "crash"])
async def test_a_host_that_dies_under_load_loses_no_ticket(stage: Stage, vast: FakeVast, way: str) -> None:
    async with stage.process(slots=1):
        tickets = [await stage.sent(max_tokens=2000) for _ in range(8)]

        async def running() -> bool:
            return "running" in [(await stage.service.result(each))["phase"] for each in tickets]

        await eventually(running, "one runs", SECONDS)
        getattr(vast, way)(vast.instances()[0]["id"])
        for ticket in tickets:
            await answered(stage, ticket)
        hosts = await all_ended(stage, vast)
    assert sorted(host["state"] for host in hosts) == ["failed", "gone"]


@pytest.mark.parametrize("way", ["interrupt", "vanish", "destroy"])
async def test_runs_on_a_host_that_is_taken_away_or_ended_spend_no_attempt(
    stage: Stage, vast: FakeVast, way: str
) -> None:
    async with stage.process(slots=2, interruptible=way == "interrupt"):
        tickets = [await stage.sent(max_tokens=4000, ignore_eos=True) for _ in range(3)]

        async def running() -> bool:
            return [(await stage.service.result(each))["phase"] for each in tickets].count("running") == 2

        await eventually(running, "two run", SECONDS)
        (host,) = await stage.hosts()
        if way == "destroy":
            await stage.service.client.post(f"/hosts/{host['id']}/destroy")
        else:
            getattr(vast, way)(vast.instances()[0]["id"])
        for ticket in tickets:
            assert (await answered(stage, ticket))["attempt_count"] == 1
            attempts = (await stage.service.client.get(f"/results/{ticket}/attempts")).json()
            assert [each["outcome"] for each in attempts] == ["completed"]
        await all_ended(stage, vast)


async def test_a_host_that_lies_about_its_end_is_told_again_until_it_is_gone(stage: Stage, vast: FakeVast) -> None:
    vast.faults.destroy_ignored, vast.faults.destroy_refused = 2, 1
    async with stage.process():
        await answered(stage, await stage.sent())
        await all_ended(stage, vast)
    assert len(vast.calls("DELETE", "/instances/")) == 4


async def test_a_budget_that_is_spent_ends_the_hosts_and_the_tickets_say_so(
    stage: Stage, vast: FakeVast, rows: Any
) -> None:
    async with stage.process(budget={"total": 2}, idle_minutes=5):
        await answered(stage, await stage.sent())
        await rows.execute("UPDATE host_charges SET from_at = from_at - interval '10 hours'")
        ticket = await stage.sent(max_tokens=4)
        await all_ended(stage, vast)
        ticket = await stage.sent()

        async def said() -> bool:
            waiting = (await stage.service.result(ticket))["waiting"]
            return bool(waiting) and waiting["reason"] == "budget"

        await eventually(said, "the ticket says that the budget is spent")
    assert len(vast.calls("PUT", "/asks/")) == 1


async def test_while_the_provider_is_away_hosts_stay_and_none_is_made(stage: Stage, vast: FakeVast) -> None:
    vast.faults.clock_seconds = 3600.0
    async with stage.process(max=2):
        await answered(stage, await stage.sent())
        vast.faults.away = True
        await answered(stage, await stage.sent())
        host = await in_state(stage, "draining", "destroying")
        assert host["ended_at"] is None
        assert len(vast.instances()) == 1
        vast.faults.away = False
        (host,) = await all_ended(stage, vast)
    assert host["cost"] < host["hourly_price"] / 60


async def test_a_host_that_nobody_knows_of_is_ended_and_paid_for(stage: Stage, vast: FakeVast, rows: Any) -> None:
    async with stage.process():
        await answered(stage, await stage.sent())
        service = await rows.fetchval("SELECT service FROM capacity_leader")
        # It may be ended before it runs.
        vast.rent(public(stage.key), label=f"triton-tickets-{service}-late", running=False)
        others = vast.rent(public(stage.key), label="triton-tickets-0123abcd")

        async def known() -> bool:
            return len(await stage.hosts()) == 2

        await eventually(known, "the stray host has a row")

        async def ended() -> bool:
            return all(host["ended_at"] for host in await stage.hosts())

        await eventually(ended, "no host is left", SECONDS)
    # That of somebody else with the same account.
    assert [row["id"] for row in vast.instances()] == [others["id"]]
