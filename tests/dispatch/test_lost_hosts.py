"""A run that is lost with its rented host costs its ticket an attempt only where the host itself failed."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest

from app.config import Settings
from tests.servers import RunningTriton
from tests.service import eventually, running_api, running_dispatcher
from tests.test_servers_come_and_go import forwarding

HOST = """
INSERT INTO hosts (pool, provider, label, offer, hourly_price, models, state)
VALUES ('p', 'vast', $1, '1', 0.5, '{slow}', 'ready') RETURNING id
"""
SERVER = "INSERT INTO servers (name, kind, address, host_id) VALUES ('rented', 'triton', $1, $2)"
FATES = {
    "taken": "UPDATE hosts SET taken = true",
    "ended": "UPDATE hosts SET state = 'destroying'",
    "failed": "UPDATE hosts SET state = 'destroying', failure = 'Triton was silent'",
}


@pytest.mark.parametrize(("fate", "attempts"), [("taken", 1), ("ended", 1), ("failed", 2)])
async def test_an_attempt_is_spent_only_where_the_host_failed(
    make_settings: Callable[..., Settings], triton: RunningTriton, rows: Any, fate: str, attempts: int
) -> None:
    settings = make_settings(triton_urls=())
    async with AsyncExitStack() as stack:
        tunnel = await stack.enter_async_context(forwarding(triton.grpc_url))
        await rows.execute(SERVER, tunnel.url, await rows.fetchval(HOST, uuid4().hex))
        service = await stack.enter_async_context(running_api(settings))
        await stack.enter_async_context(running_dispatcher(settings))
        ticket = await service.send(model="slow", parameters={"max_tokens": 60, "ignore_eos": True})

        async def running() -> bool:
            return bool((await service.result(ticket))["phase"] == "running")

        await eventually(running, "it runs")
        await tunnel.cut()
        # The provider's word comes later than the end of the connection.
        await asyncio.sleep(0.2)
        assert (await service.result(ticket))["phase"] == "running"
        await rows.execute(FATES[fate])
        await tunnel.restore()
        result = await service.settled(ticket)
        assert (result["status"], result["attempt_count"]) == ("completed", attempts)
        assert len((await service.client.get(f"/results/{ticket}/attempts")).json()) == attempts
