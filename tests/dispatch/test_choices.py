"""A ticket with several choices: as many generations of one text, on whatever slots there are."""

import asyncio
import random
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.config import Settings
from app.db.tables.contexts import Prompt
from app.dispatch.choices import Choices, parameters_of
from app.engines.base import EngineError
from app.fleet.fleet import Fleet, open_fleet
from app.fleet.lanes import Lane
from app.queue.ticket import Claim
from app.tasks.chunks import Accumulator
from app.telemetry.metrics import IN_FLIGHT
from tests.engine import busy
from tests.servers import RunningTriton
from tests.service import Service, eventually, running_api, running_dispatcher

LONG: dict[str, Any] = {"max_tokens": 2000, "ignore_eos": True}


async def test_each_choice_is_a_whole_text_of_its_own_seed(service: Service) -> None:
    """Of different lengths, which the backend itself mixes up."""
    result = await service.run(n=5, seed=3, max_tokens=120)
    single = [await service.run(seed=3 + choice, max_tokens=120) for choice in range(5)]
    assert [choice["text"] for choice in result["outputs"]] == [each["output"] for each in single]
    assert [choice["finish_reason"] for choice in result["outputs"]] == [each["finish_reason"] for each in single]
    used = [each["usage"] for each in single]
    assert len({each["completion_tokens"] for each in used}) > 1
    assert result["usage"]["prompt_tokens"] == used[0]["prompt_tokens"]
    assert result["usage"]["completion_tokens"] == sum(each["completion_tokens"] for each in used)
    (attempt,) = await service.attempts(result["id"])
    assert attempt["outcome"] == "completed"


async def test_more_choices_than_slots_run_one_after_the_other(
    make_settings: Callable[..., Settings], triton: RunningTriton
) -> None:
    async with running_api(make_settings()) as service, running_dispatcher(make_settings(model_concurrency=1)):
        result = await service.run("[[sim:slow=2]]", n=7, seed=1, max_tokens=20, logprobs=1)
    assert len({choice["text"] for choice in result["outputs"]}) == 7
    assert all(choice["logprobs"] for choice in result["outputs"])


async def test_choices_use_the_slots_that_nobody_wants_and_leave_the_others(
    make_settings: Callable[..., Settings], triton: RunningTriton
) -> None:
    """A wide ticket fills a free server; tickets that come later get the slots as its choices end."""
    settings = make_settings(model_concurrency=4)
    async with running_api(settings) as service, running_dispatcher(settings):
        wide = await service.send(
            model="slow", prompt="[[sim:slow=10]]", parameters={"n": 40, "max_tokens": 50, "ignore_eos": True}
        )

        async def full() -> bool:
            return await busy(triton, "slow") == 4

        await eventually(full, "it uses every slot")
        others = await asyncio.gather(*(service.run(model="slow", max_tokens=5, ignore_eos=True) for _ in range(6)))
        assert {other["status"] for other in others} == {"completed"}
        assert (await service.result(wide))["status"] == "pending"
        result = await service.settled(wide)
    assert [len(choice["text"]) > 0 for choice in result["outputs"]] == [True] * 40


async def test_two_wide_tickets_never_wait_for_each_other(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(model_concurrency=2)
    async with running_api(settings) as service, running_dispatcher(settings):
        results = await asyncio.gather(*(service.run(n=20, max_tokens=8) for _ in range(4)))
    assert {(result["status"], result["attempt_count"]) for result in results} == {("completed", 1)}
    assert {len(result["outputs"]) for result in results} == {20}


async def test_one_choices_failure_is_the_whole_tickets(
    make_settings: Callable[..., Settings], triton: RunningTriton
) -> None:
    settings = make_settings(model_concurrency=3, max_attempts=1)
    async with running_api(settings) as service, running_dispatcher(settings):
        result = await service.run(
            "[[sim:error-of-seed=12]][[sim:slow=20]][[sim:tokens=6]]", model="slow", n=8, seed=9, max_tokens=100
        )
        assert (result["status"], result["error"]["code"]) == ("failed", "engine_error")
        assert "seed 12 fails" in result["error"]["message"]

        async def free() -> bool:
            return await busy(triton, "slow") == 0

        await eventually(free, "the other choices are stopped")
        (attempt,) = await service.attempts(result["id"])
        assert attempt["outcome"] == "failed"
        assert (await service.run(model="slow", n=3, max_tokens=2))["status"] == "completed"


@pytest.mark.parametrize("how", ["cancel", "expiry"])
async def test_a_stop_reaches_every_choice(
    make_settings: Callable[..., Settings], triton: RunningTriton, how: str
) -> None:
    settings = make_settings(model_concurrency=4)
    async with running_api(settings) as service, running_dispatcher(settings):
        options = {"expires_in": 2} if how == "expiry" else {}
        id_ = await service.send(model="slow", parameters={"n": 6, **LONG}, **options)

        async def full() -> bool:
            return await busy(triton, "slow") == 4

        await eventually(full, "it uses every slot")
        if how == "cancel":
            await service.client.post(f"/results/{id_}/cancel")
        result = await service.settled(id_)
        assert result["error"]["code"] == ("cancelled" if how == "cancel" else "expired")

        async def free() -> bool:
            return await busy(triton, "slow") == 0 and await in_flight(triton) == 0

        await eventually(free, "every slot is free", 10)


async def in_flight(triton: RunningTriton) -> float:
    """What the dispatchers of this process count."""
    samples = [sample for metric in IN_FLIGHT.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.labels["server"] == triton.grpc_url)


async def test_a_stop_of_the_dispatcher_gives_a_wide_ticket_back(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(model_concurrency=2, drain_seconds=0.3)
    async with running_api(settings) as service:
        async with running_dispatcher(settings):
            id_ = await service.send(model="slow", parameters={"n": 5, **LONG})

            async def runs() -> bool:
                return (await service.result(id_))["phase"] == "running"

            await eventually(runs, "it runs")
        back = await service.result(id_)
        assert (back["status"], back["phase"], back["attempt_count"]) == ("pending", "queued", 0)


@pytest.mark.parametrize("seed", range(12))
async def test_slots_are_counted_truly_however_tickets_end(triton: RunningTriton, seed: int) -> None:
    """Tickets of random width start, end, fail and are stopped at random moments, on few slots.

    What is stopped is long, as are the others of what fails: tritonserver does not always survive a request that is
    cancelled in the moment of its last message.
    """
    draw = random.Random(seed)
    concurrency, bound = draw.randint(1, 5), draw.randint(1, 6)
    settings = Settings(triton_urls=(triton.grpc_url,), model_concurrency=concurrency, server_concurrency=bound)
    async with open_fleet(settings) as fleet:
        await fleet.refresh()
        lane = fleet.servers[0].lanes["tiny"]
        counts: list[int] = []
        fleet.freed = lambda: counts.append(lane.in_flight)
        tickets = [_Ticket(fleet, lane, settings, draw) for _ in range(15)]
        started: list[asyncio.Task[None]] = []
        long: set[asyncio.Task[None]] = set()
        while tickets or not all(task.done() for task in started):
            await asyncio.sleep(draw.choice((0, 0, 0.001, 0.004)))
            counts.append(lane.in_flight)
            if tickets and draw.random() < 0.6:
                if fleet.acquire("tiny"):
                    ticket = tickets.pop()
                    started.append(asyncio.create_task(ticket.run()))
                    if ticket.long:
                        long.add(started[-1])
            elif draw.random() < 0.7:
                fleet.share_out()
            elif draw.random() < 0.3 and (running := [task for task in started if task in long and not task.done()]):
                draw.choice(running).cancel()
        ends = await asyncio.gather(*started, return_exceptions=True)
        assert [end for end in ends if not (end is None or isinstance(end, asyncio.CancelledError))] == []
        assert min(counts) >= 0
        assert max(counts) <= min(concurrency, bound)
        assert (lane.in_flight, len(lane.waiting)) == (0, 0)
        assert fleet.servers[0].shares._in_flight == 0

        async def free() -> bool:
            return await busy(triton, "tiny") == 0

        await eventually(free, "the engine is free", 10)


class _Ticket:
    def __init__(self, fleet: Fleet, lane: Lane, settings: Settings, draw: random.Random) -> None:
        self._width = draw.randint(1, 7)
        self._fails = draw.random() < 0.3
        # Longer than anything here takes, unless it is stopped.
        self.long = self._fails or draw.random() < 0.4
        prompt = f"[[sim:error-of-seed={draw.randrange(self._width)}]]" if self._fails else "Tell me."
        if self.long:
            prompt += "[[sim:slow=20]]"
        tokens = 200 if self.long else draw.randint(1, 25)
        parameters = {"n": self._width, "seed": 0, "max_tokens": tokens, "ignore_eos": self.long}
        claim = Claim(
            uuid4(),
            uuid4(),
            "tiny",
            parameters,
            token=UUID(int=0),
            server=lane.server.url,
            prompt=Prompt(prompt),
            attempt=1,
        )
        self._answer = Accumulator(self._width)
        self._choices = Choices(claim, lane, fleet, settings, self._answer, lambda: None, lambda: False)

    async def run(self) -> None:
        if self._fails:
            with pytest.raises(EngineError, match="fails"):
                await self._choices.run()
            return
        await self._choices.run()
        assert self._answer.finished
        assert all(self._answer.joined())


def test_the_engine_is_asked_for_one_text_with_a_seed_of_its_own() -> None:
    asked = {"n": 3, "seed": 5, "temperature": 0.5}
    assert [parameters_of(asked, choice) for choice in range(3)] == [
        {"seed": seed, "temperature": 0.5} for seed in (5, 6, 7)
    ]
    assert parameters_of({"n": 2}, 1) == {}


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63 - 3, -2, -3, -(2**63), -(2**63) + 2, 17])
def test_seeds_of_choices_differ_and_are_ones_that_engines_take(seed: int) -> None:
    seeds = [parameters_of({"seed": seed}, choice)["seed"] for choice in range(128)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 128
    # -1 would mean none.
    assert all(-(2**63) <= each < 2**63 and each != -1 for each in seeds)


def test_no_seed_stays_no_seed() -> None:
    assert [parameters_of({"seed": -1}, choice)["seed"] for choice in range(3)] == [-1] * 3
