"""A server's time is divided among what it runs, and nothing of it is lost or counted twice."""

import random

import asyncpg
import pytest

from app.fleet.shares import Share, Shares
from tests.service import Service


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_requests_in_flight_together_share_the_time_equally() -> None:
    clock = Clock()
    shares = Shares(clock)
    long = shares.join()
    clock.now += 4
    short = shares.join()
    clock.now += 2
    assert short.end() == 1.0
    clock.now += 3
    assert long.end() == 4 + 1 + 3
    clock.now += 50
    later = shares.join()
    clock.now += 0.5
    assert later.end() == 0.5
    clock.now += 1
    assert later.end() == 0.5


@pytest.mark.parametrize("seed", range(20))
def test_shares_add_up_to_the_time_in_which_there_was_work(seed: int) -> None:
    draw, clock = random.Random(seed), Clock()
    shares = Shares(clock)
    running: list[Share] = []
    busy = spent = 0.0
    for _ in range(500):
        if running and draw.random() < 0.5:
            spent += running.pop(draw.randrange(len(running))).end()
        else:
            running.append(shares.join())
        passed = draw.expovariate(3)
        busy += passed if running else 0
        clock.now += passed
    spent += sum(share.end() for share in running)
    assert spent == pytest.approx(busy)


async def test_what_runs_cost_of_their_server_is_on_record(service: Service) -> None:
    """Four at once on one server: their shares add up to no more than the time that passed."""
    ids = [
        await service.send(model="slow", parameters={"max_tokens": 20 + 10 * n, "ignore_eos": True}) for n in range(4)
    ]
    for id_ in ids:
        await service.settled(id_)
    connection = await asyncpg.connect(service.settings.database_url)
    attempts = await connection.fetch("SELECT gpu_seconds, ended_at, started_at FROM attempts")
    counted = await connection.fetchrow(
        "SELECT sum(gpu_seconds) AS seconds, sum(requests) AS n, sum(cost) AS cost FROM usage"
    )
    await connection.close()
    took = max(row["ended_at"] for row in attempts) - min(row["started_at"] for row in attempts)
    assert all(row["gpu_seconds"] > 0 for row in attempts)
    total = sum(row["gpu_seconds"] for row in attempts)
    assert 0 < total <= took.total_seconds()
    assert total > 0.5 * took.total_seconds()
    assert (counted["seconds"], counted["n"], counted["cost"]) == (pytest.approx(total), 4, None)
