"""Hosts over HTTP: what admins see and ask for, and what tickets of a model with a pool are told."""

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest

from app.config import Settings
from app.db.engine import Database
from app.queue.hosts import LeadersHosts
from app.queue.leader import LeaderStore
from app.queue.pools import LeadersPools
from tests.capacity.test_ledger import PRICE, reserved
from tests.service import Service, eventually, running_api


@pytest.fixture
async def token(database: Database) -> int:
    taken = await LeaderStore(database).take("first", 60)
    assert taken is not None
    await LeadersPools(database, taken.token).put(
        [{"name": "p", "models": ["sleeper"], "settings": {"max_hosts": 1}}], {"month": 9.0}
    )
    return taken.token


@pytest.fixture
async def alone(make_settings: Callable[..., Settings], token: int) -> AsyncIterator[Service]:
    """An API that knows of no server."""
    async with running_api(make_settings(triton_urls=())) as service:
        yield service


async def test_admins_see_hosts_and_have_them_drained_locked_and_destroyed(
    alone: Service, database: Database, token: int, rows: Any
) -> None:
    leader = LeadersHosts(database, token)
    first, second = await reserved(leader), await reserved(leader, label="second")
    await leader.move(first["id"], "creating")
    await leader.move(first["id"], "booting", provider_id="4711")
    await leader.progress(first["id"], "pulling the image", noted=True)
    await leader.fail(second["id"], "SSH never answered")
    await leader.end(second["id"], "gone")
    hosts = (await alone.client.get("/hosts/")).json()
    assert [host["state"] for host in hosts] == ["failed", "booting"]
    assert (await alone.client.get("/hosts/", params={"after": hosts[0]["id"]})).json()[0]["id"] == str(first["id"])
    host = (await alone.client.get(f"/hosts/{first['id']}")).json()
    assert (host["provider_id"], host["progress"], host["hourly_price"]) == ("4711", "pulling the image", PRICE)
    assert [event["state"] for event in host["events"]] == ["wanted", "creating", "booting", "booting"]
    locked = (await alone.client.post(f"/hosts/{first['id']}/lock")).json()
    assert locked["locked"]
    assert not (await alone.client.post(f"/hosts/{first['id']}/unlock")).json()["locked"]
    assert (await alone.client.post(f"/hosts/{first['id']}/drain")).json()["asked"] == "drain"
    assert (await alone.client.post(f"/hosts/{first['id']}/destroy")).json()["asked"] == "destroy"
    for verb in ("drain", "destroy", "lock"):
        answer = await alone.client.post(f"/hosts/{second['id']}/{verb}")
        assert (answer.status_code, answer.json()["code"]) == (409, "host_ended")
    missing = await alone.client.post(f"/hosts/{uuid4()}/drain")
    assert (missing.status_code, missing.json()["code"]) == (404, "host_not_found")
    actions = [row["action"] for row in await rows.fetch("SELECT action FROM audit ORDER BY id")]
    assert actions == ["host.locked", "host.unlocked", "host.drained", "host.destroyed"]
    capacity = (await alone.client.get("/capacity/")).json()
    assert capacity["leader"]["leads"]
    assert (capacity["budget"], capacity["spent"]["rate"]) == ({"month": 9.0}, PRICE)
    (pool,) = capacity["pools"]
    assert (pool["name"], pool["hosts"], pool["spent"]["rate"]) == ("p", 1, PRICE)


async def test_a_model_whose_hosts_sleep_takes_tickets_and_they_say_what_they_wait_for(
    alone: Service, database: Database, token: int, rows: Any
) -> None:
    models = {model["id"]: model for model in (await alone.client.get("/v1/models")).json()["data"]}
    assert models["sleeper"]["state"] == "unavailable"
    (native,) = (await alone.client.get("/models/")).json()
    assert "a request has one started" in native["reason"]
    ticket = await alone.send(model="sleeper")
    assert (await alone.result(ticket))["waiting"]["reason"] == "no_server"
    told: dict[str, Any] = {"model": "sleeper", "host": "", "step": "", "ready_at": None}
    pools = LeadersPools(database, token)

    async def waiting(**plan: Any) -> dict[str, Any]:
        await pools.planned({"p": {"waiting": [told | plan]}})

        async def said() -> dict[str, Any] | None:
            found: dict[str, Any] = (await alone.result(ticket))["waiting"]
            return found if found["reason"] == plan["reason"] else None

        found: dict[str, Any] = await eventually(said, "the ticket says what the plan says", 20)
        return found

    starting = await waiting(
        reason="host_starting", message="A host boots.", host="h", step="booting", ready_at=1_800_000_000.5
    )
    assert (starting["host"], starting["step"]) == ("h", "booting")
    assert starting["estimated_ready_at"] == "2027-01-15T08:00:00.500000Z"
    none = await waiting(reason="no_offer", message="gpu_ram removes 12 offers.")
    assert (none["detail"], none["host"]) == ("gpu_ram removes 12 offers.", None)
    await rows.execute("UPDATE pools SET seen_at = now() - interval '10 minutes'")

    async def silent() -> bool:
        return "does not run" in ((await alone.result(ticket))["waiting"]["detail"] or "")

    await eventually(silent, "the ticket says that nothing starts hosts")
