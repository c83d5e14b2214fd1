"""From nothing to an answered ticket and back to nothing, on the simulation of Vast.ai."""

from typing import Any

import pytest

from tests.capacity.conftest import MODEL, Stage
from tests.service import eventually
from tests.vast.fake import FakeVast


async def test_a_ticket_has_a_host_made_and_the_host_goes_when_there_is_no_more_work(
    stage: Stage, vast: FakeVast, rows: Any
) -> None:
    async with stage.controller():
        ticket = await stage.sent()

        async def starting() -> dict[str, Any] | None:
            waiting = (await stage.service.result(ticket))["waiting"]
            return waiting if waiting and waiting["reason"] == "host_starting" and waiting["host"] else None

        waiting = await eventually(starting, "the ticket says which host it waits for")
        assert waiting["host"] == (await stage.hosts())[0]["id"]
        assert waiting["estimated_ready_at"] is not None
        result = await stage.service.settled(ticket)
        assert result["status"] == "completed", result
        assert "[simulated]" in result["output"]
        (host,) = await stage.hosts()
        assert (host["state"], host["models"]) == ("ready", [MODEL])
        # Its provider asks more for it than it was offered for.
        vast.faults.row = {"dph_total": 5.0}

        async def gone() -> bool:
            return (await stage.hosts())[0]["state"] == "gone"

        await eventually(gone, "the host goes when it is idle")
    assert vast.instances() == []
    assert await stage.life() == [
        *("wanted", "creating", "booting", "deploying", "loading", "ready", "draining", "destroying", "gone")
    ]
    (host,) = await stage.hosts()
    assert (host["generations"], host["failure"], host["hourly_price"]) == (1, None, 5.0)
    assert host["revision"] == "Qwen/Qwen2.5-7B-Instruct"
    # By the ledger, and by the provider's own count.
    assert 0 < vast.spent() <= host["cost"]
    assert (await stage.service.client.get("/servers/")).json() == []
    # What the ticket cost and what its host cost besides are what the ledger says.
    total = (await stage.service.client.get("/usage?owner=all")).json()["total"]
    cost = (await stage.service.result(ticket))["cost"]
    assert 0 < cost < host["cost"]
    assert (total["cost"], total["host_cost"]) == (pytest.approx(cost), pytest.approx(cost))
    assert cost + total["overhead"] == pytest.approx(host["cost"])
