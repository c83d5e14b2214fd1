"""A host that never boots, on the simulation of Vast.ai."""

from typing import Any

from tests.capacity.conftest import Stage
from tests.service import eventually
from tests.vast.fake import FakeVast


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
