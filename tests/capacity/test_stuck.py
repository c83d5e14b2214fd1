"""What cannot work, on the simulation of Vast.ai: it costs little, and the ticket says why."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from app.db.engine import Database
from app.queue.hosts import HostStore, LeadersHosts
from app.queue.leader import LeaderStore
from tests.capacity.conftest import MODEL, Stage, reserved
from tests.postgres_server import RunningPostgres, refusing_connections
from tests.servers import TEST_MODELS
from tests.service import eventually
from tests.vast.fake import FakeVast
from tests.vast.kit import public


async def test_a_host_that_never_boots_is_ended_at_its_deadline_and_billed_no_more(
    stage: Stage, vast: FakeVast, rows: Any
) -> None:
    vast.boot_seconds = 3600.0
    async with stage.controller(boot_deadline_minutes=0.03, startup_minutes=0.01):
        ticket = await stage.sent()

        async def failed() -> dict[str, Any] | None:
            return next((host for host in await stage.hosts() if host["ended_at"]), None)

        host = await eventually(failed, "the host is given up")
        assert (host["state"], host["generations"]) == ("failed", 0)
        assert "not ready" in host["failure"]
        assert await rows.fetchval("SELECT until_at IS NOT NULL FROM host_charges WHERE host_id = $1", host["id"])
        assert (await stage.service.result(ticket))["status"] == "pending"
        assert host["provider_id"] not in [str(each["id"]) for each in vast.instances()]


def broken(folder: Path) -> Path:
    """A checkout whose model fails when it is loaded."""
    shutil.copytree(TEST_MODELS / "echo", folder / "models" / MODEL)
    (folder / "models" / MODEL / "1" / "model.py").write_text("raise RuntimeError('no room')\n")
    return folder


async def test_a_model_that_no_host_can_load_is_a_failure_of_its_pool_and_not_of_the_machine(
    stage: Stage, vast: FakeVast, tmp_path: Path, database: Database
) -> None:
    async with stage.controller(root=broken(tmp_path / "checkout")):
        await stage.sent()

        async def failed() -> dict[str, Any] | None:
            return next((host for host in await stage.hosts() if host["failure"]), None)

        host = await eventually(failed, "the host is given up", seconds=180)
    assert "no room" in host["failure"]
    store = HostStore(database)
    (failure, *_) = await store.failures(60)
    assert (failure["pool"], failure["machine"]) == ("chat", None)


async def test_models_that_could_not_be_deployed_and_refusals_make_no_host_and_the_ticket_says_why(
    stage: Stage, vast: FakeVast, tmp_path: Path
) -> None:
    (tmp_path / "checkout" / "models" / "other").mkdir(parents=True)
    async with stage.controller(root=tmp_path / "checkout"):
        ticket = await stage.sent()

        async def told() -> str | None:
            waiting = (await stage.service.result(ticket))["waiting"]
            return waiting["detail"] if waiting and waiting["reason"] == "no_offer" else None

        said = await eventually(told, "the ticket says why")
        assert "No host of vast can be made" in said
        assert f"{MODEL}: there is no such folder" in said
    assert vast.calls("PUT", "/asks/") == []
    assert sum(host["cost"] for host in await stage.hosts()) == 0
    vast.faults.create_refused = 100
    async with stage.controller():

        async def lacks_credit() -> bool:
            return "Your account lacks credit" in (await told() or "")

        await eventually(lacks_credit, "the ticket says why")
    assert len(vast.calls("PUT", "/asks/")) == 1


async def test_what_became_of_a_host_while_postgres_was_away_is_written_down_when_it_is_back(
    stage: Stage, vast: FakeVast, postgres: RunningPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    vast.boot_seconds = 3600.0
    stage.settings = stage.settings.model_copy(update={"capacity_lease_seconds": 60.0})
    async with stage.controller():
        await stage.sent()

        async def booting() -> bool:
            return any(host["state"] == "booting" for host in await stage.hosts())

        await eventually(booting, "a host boots")

        async def repeated() -> bool:
            return "a host's step is repeated" in caplog.text or "crashed" in caplog.text

        async with refusing_connections(postgres, stage.settings.database_url):
            vast.vanish(vast.instances()[0]["id"])
            await eventually(repeated, "what became of it cannot be written down")

        async def failed() -> dict[str, Any] | None:
            return next((host for host in await stage.hosts() if host["ended_at"]), None)

        host = await eventually(failed, "it has failed")
    assert (host["state"], host["failure"]) == (
        "failed",
        "The provider no longer has it, and nobody asked for its end.",
    )
    assert "crashed" not in caplog.text


@pytest.mark.parametrize("twice", [False, True])
async def test_a_host_that_comes_to_light_later_is_charged_for_the_time_before(
    stage: Stage, vast: FakeVast, database: Database, rows: Any, twice: bool
) -> None:
    leadership = await LeaderStore(database).take("first", 60)
    assert leadership is not None
    leader = LeadersHosts(database, leadership.token)
    label = f"triton-tickets-{leadership.service}-late"
    before = await reserved(leader, pool="chat", label=label)
    if twice:
        # Its create made two: the other one is known, and has ended.
        await leader.known_as(before["id"], "4711")
    await leader.end(before["id"], "No host has its label.")
    await rows.execute(
        "UPDATE hosts SET created_at = created_at - interval '2 hours', ended_at = ended_at - interval '1 hour'"
    )
    await rows.execute("UPDATE capacity_leader SET until = now()")
    vast.rent(public(stage.key), label=label, running=False)
    async with stage.controller():
        find = """
        SELECT c.from_at, b.created_at, b.ended_at FROM hosts h JOIN host_charges c ON c.host_id = h.id, hosts b
        WHERE h.label LIKE $1 || '+%' AND b.label = $1
        """

        async def adopted() -> Any:
            return await rows.fetchrow(find, label)

        found = await eventually(adopted, "it has a row")
    assert found["from_at"] == (found["created_at"] if twice else found["ended_at"])


async def test_a_leader_that_takes_over_is_no_progress_of_a_host_that_boots(
    stage: Stage, vast: FakeVast, rows: Any
) -> None:
    vast.boot_seconds = 1e6
    progress = "SELECT progress_at FROM hosts WHERE state = 'booting' AND progress <> ''"
    async with stage.controller():
        await stage.sent()

        async def heard() -> Any:
            return await rows.fetchval(progress)

        since = await eventually(heard, "the provider says how far it is")
    asked = len(vast.calls("GET", "/api/v1/instances/"))
    async with stage.controller():

        async def asked_again() -> bool:
            return len(vast.calls("GET", "/api/v1/instances/")) >= asked + 4

        await eventually(asked_again, "the next leader hears the same")
    assert await rows.fetchval(progress) == since
