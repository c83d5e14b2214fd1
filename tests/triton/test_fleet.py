"""Where requests go."""

from collections.abc import AsyncIterator

import pytest

from app.triton.client import Disposition, TritonError
from app.triton.fleet import Fleet, open_fleet
from nvidia_triton.local.settings import free_ports
from tests.servers import RunningTriton


@pytest.fixture
async def fleet(triton: RunningTriton) -> AsyncIterator[Fleet]:
    """One server by two addresses, and one that is not there."""
    port = triton.grpc_url.rsplit(":", 1)[1]
    urls = [triton.grpc_url, f"localhost:{port}", f"127.0.0.1:{free_ports(1)[0]}"]
    async with open_fleet(urls, concurrency=3) as opened:
        await opened.refresh()
        yield opened


async def test_slots_are_those_of_servers_that_answer(fleet: Fleet) -> None:
    assert [server.up for server in fleet.servers] == [True, True, False]
    assert fleet.servers[2].reason
    assert fleet.free_slots()["tiny"] == 6
    assert "fragile" not in fleet.free_slots()
    assert fleet.acquire("fragile") is None


async def test_requests_go_where_the_least_are_in_flight(fleet: Fleet) -> None:
    taken = [fleet.acquire("tiny") for _ in range(6)]
    assert {server.url: taken.count(server) for server in fleet.servers[:2] for _ in [0]} == {
        fleet.servers[0].url: 3,
        fleet.servers[1].url: 3,
    }
    assert fleet.acquire("tiny") is None
    assert fleet.acquire("noop") is not None
    assert "tiny" not in fleet.free_slots()
    assert taken[0] is not None
    fleet.release(taken[0], "tiny")
    assert fleet.acquire("tiny") is taken[0]


@pytest.mark.parametrize("code", ["server_unreachable", "server_died", "idle_timeout"])
async def test_a_server_at_fault_gets_nothing_until_it_answers_again(fleet: Fleet, code: str) -> None:
    server = fleet.servers[0]
    fleet.report(server, "tiny", TritonError(code, "x", Disposition.RETRY, server_fault=True))
    assert fleet.free_slots()["tiny"] == 3
    assert fleet.acquire("tiny") is fleet.servers[1]
    await fleet.refresh()
    server.cool_until = 0
    assert fleet.free_slots()["tiny"] == 5


async def test_a_model_that_went_away_is_not_tried_again_before_the_next_look(fleet: Fleet) -> None:
    fleet.report(fleet.servers[0], "tiny", TritonError("model_unavailable", "x", Disposition.WAIT))
    assert fleet.free_slots()["tiny"] == 3
    assert fleet.free_slots()["noop"] == 6
    await fleet.refresh()
    assert fleet.free_slots()["tiny"] == 6


async def test_a_fault_of_the_request_leaves_the_server_alone(fleet: Fleet) -> None:
    fleet.report(fleet.servers[0], "tiny", TritonError("prompt_too_long", "x", Disposition.FINAL))
    assert fleet.free_slots()["tiny"] == 6
