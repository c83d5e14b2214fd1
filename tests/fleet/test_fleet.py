"""Where requests go."""

from collections import Counter
from collections.abc import AsyncIterator

import pytest

from app.config import Settings
from app.engines.base import Disposition, EngineError
from app.fleet.fleet import Fleet, open_fleet
from app.fleet.turnover import Turnover
from nvidia_triton.local.settings import free_ports
from tests.servers import RunningTriton


@pytest.fixture
async def fleet(triton: RunningTriton) -> AsyncIterator[Fleet]:
    """One server by two addresses, and one that is not there."""
    port = triton.grpc_url.rsplit(":", 1)[1]
    urls = (triton.grpc_url, f"localhost:{port}", f"127.0.0.1:{free_ports(1)[0]}")
    async with open_fleet(Settings(triton_urls=urls, model_concurrency=3, server_concurrency=5)) as opened:
        await opened.refresh()
        yield opened


def fault(code: str, disposition: Disposition = Disposition.RETRY, *, server: bool = True) -> EngineError:
    return EngineError(code, "x", disposition, server_fault=server)


def slots(fleet: Fleet) -> Counter[str]:
    """Free slots by model, when only that model is asked for."""
    names = {lane.model for lane in fleet.lanes()}
    return +Counter({model: len(fleet.free_slots(1000, without=names - {model})) for model in names})


async def test_slots_are_those_of_servers_that_answer(fleet: Fleet) -> None:
    assert [server.up for server in fleet.servers] == [True, True, False]
    assert fleet.servers[2].reason
    assert slots(fleet)["tiny"] == 6
    assert "fragile" not in slots(fleet)
    assert fleet.acquire("fragile") is None


async def test_requests_go_where_the_least_are_in_flight(fleet: Fleet) -> None:
    taken = [fleet.acquire("tiny") for _ in range(6)]
    assert Counter(lane.server.url for lane in taken if lane) == {server.url: 3 for server in fleet.servers[:2]}
    assert fleet.acquire("tiny") is None
    assert "tiny" not in slots(fleet)
    assert taken[0] is not None
    fleet.release(taken[0])
    assert fleet.acquire("tiny") is taken[0]


async def test_slots_are_offered_on_the_least_busy_servers_first(fleet: Fleet) -> None:
    first, second = fleet.servers[:2]
    for _ in range(2):
        fleet.acquire("tiny", first.url)
    assert first.in_flight == 2
    offered = [lane.server for lane in fleet.free_slots(3)]
    assert offered[:2] == [second, second]
    assert len(fleet.free_slots(1000)) == 3 + 5


async def test_few_slots_of_each_server_are_offered_to_a_model_that_takes_no_more(fleet: Fleet) -> None:
    others = {lane.model for lane in fleet.lanes()} - {"tiny", "noop"}
    few = Counter((lane.server.url, lane.model) for lane in fleet.free_slots(1000, others, few=1, many={"tiny"}))
    assert {few[server.url, "tiny"] for server in fleet.servers[:2]} == {3}
    assert {few[server.url, "noop"] for server in fleet.servers[:2]} == {1}


async def test_what_goes_ahead_of_settles_is_for_engines_with_a_queue(triton: RunningTriton) -> None:
    """As measured: a slot is empty for as long as a request takes."""
    urls = (triton.grpc_url, f"localhost:{triton.grpc_url.rsplit(':', 1)[1]}")
    async with open_fleet(Settings(triton_urls=urls, model_concurrency=8, server_concurrency=64)) as fleet:
        await fleet.refresh()
        lanes = [server.lanes["tiny"] for server in fleet.servers]
        for lane, now in zip(lanes, (iter(range(100)), iter(range(100))), strict=True):
            lane.turnover = Turnover(lambda now=now: float(next(now)))  # type: ignore[misc]
            for _ in range(3):
                lane.turnover.started()
                lane.turnover.ended()
                lane.turnover.refilled(lane.turnover.take_ended(), [60.0])
        lanes[1].server.engine.queues = False
        assert [fleet.ahead_of(lane) for lane in lanes] == [1, 0]
        assert slots(fleet)["tiny"] == 8 + 1 + 8
        taken = Counter(lane.server.url for _ in range(20) if (lane := fleet.acquire("tiny")))
        assert list(taken.values()) == [9, 8]


async def test_a_model_without_work_takes_no_place_in_a_batch_from_others(fleet: Fleet) -> None:
    models = {lane.model for lane in fleet.free_slots(4, without={"tiny", "lora", "slow"})}
    assert models == {"noop"}


async def test_all_models_of_a_server_share_its_bound(fleet: Fleet) -> None:
    for _ in range(6):
        assert fleet.acquire("tiny")
    assert slots(fleet)["noop"] == 4
    assert len([lane for lane in (fleet.acquire("noop") for _ in range(6)) if lane]) == 4
    assert slots(fleet) == {}


@pytest.mark.parametrize("code", ["server_unreachable", "server_died", "idle_timeout"])
async def test_a_server_at_fault_gets_nothing_until_it_answers_again(fleet: Fleet, code: str) -> None:
    lane = fleet.servers[0].lane("tiny")
    fleet.report(lane, fault(code))
    assert slots(fleet)["tiny"] == 3
    taken = fleet.acquire("tiny")
    assert taken is fleet.servers[1].lane("tiny")
    fleet.release(taken)
    await fleet.refresh()
    lane.cool_until = 0
    assert slots(fleet)["tiny"] == 6


@pytest.mark.parametrize("code", ["model_process_died", "engine_died"])
async def test_a_dead_model_is_set_aside_and_its_neighbours_are_not(fleet: Fleet, code: str) -> None:
    lane = fleet.servers[0].lane("tiny")
    fleet.report(lane, fault(code))
    await fleet.refresh()
    assert lane.quarantine
    assert slots(fleet) == {"tiny": 3, "noop": 6, "slow": 6, "lora": 6}
    woken = []
    fleet.changed = lambda: woken.append(True)
    fleet.take_back(lane)
    assert woken
    assert slots(fleet)["tiny"] == 6


async def test_a_model_that_went_away_is_not_tried_again_before_the_next_look(fleet: Fleet) -> None:
    fleet.report(fleet.servers[0].lane("tiny"), fault("model_unavailable", Disposition.WAIT, server=False))
    assert slots(fleet)["tiny"] == 3
    assert slots(fleet)["noop"] == 6
    await fleet.refresh()
    assert slots(fleet)["tiny"] == 6


async def test_a_fault_of_the_request_leaves_the_server_alone(fleet: Fleet) -> None:
    fleet.report(fleet.servers[0].lane("tiny"), fault("prompt_too_long", Disposition.FINAL, server=False))
    assert slots(fleet)["tiny"] == 6
