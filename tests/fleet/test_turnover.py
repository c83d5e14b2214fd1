"""How many requests go ahead of the settles: as many as slots stand empty meanwhile, measured and bounded."""

import heapq
import random

import pytest

from app.fleet.turnover import Turnover


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lane(slots: int, busy: float, empty: float, *, waited: float | None = 60.0, requests: int = 2000) -> Turnover:
    """A lane whose slots are each `empty` seconds after a request of about `busy` seconds."""
    clock, draw = Clock(), random.Random(1)
    turnover = Turnover(clock)
    ends = []
    for _ in range(slots):
        turnover.started()
        heapq.heappush(ends, clock.now + busy * (0.5 + draw.random()))
    for _ in range(requests):
        clock.now = max(clock.now, heapq.heappop(ends))
        turnover.ended()
        at = turnover.take_ended()
        clock.now += empty
        turnover.refilled(at, [waited])
        turnover.started()
        heapq.heappush(ends, clock.now + busy * (0.5 + draw.random()))
    return turnover


def test_before_anything_was_measured_none_goes_ahead() -> None:
    turnover = Turnover(Clock())
    turnover.started()
    assert turnover.ahead(64) == 0


@pytest.mark.parametrize(
    ("slots", "busy", "empty", "least", "most"),
    [
        # A slot in 64 is empty on average, one more now and then.
        (64, 0.5, 0.004, 2, 3),
        (64, 0.5, 0.0005, 0, 1),
        # Long generations lose nothing worth a request that waits in the engine.
        (64, 30.0, 0.02, 0, 0),
        (2, 0.5, 0.01, 0, 0),
        # Settles that take longer than the work: an eighth of the slots, and no more.
        (8, 0.01, 0.2, 1, 1),
        (7, 0.01, 0.2, 0, 0),
    ],
)
def test_as_many_go_ahead_as_slots_are_empty(slots: int, busy: float, empty: float, least: int, most: int) -> None:
    assert least <= lane(slots, busy, empty).ahead(slots) <= most


def test_short_requests_beside_long_ones_let_no_long_ones_in() -> None:
    clock = Clock()
    turnover = Turnover(clock)
    for round_ in range(600):
        seconds = 30.0 if round_ % 10 == 0 else 0.05
        turnover.started()
        clock.now += seconds
        turnover.ended()
        at = turnover.take_ended()
        clock.now += 0.01
        turnover.refilled(at, [60.0])
    assert turnover.ahead(8) == 0


@pytest.mark.parametrize("waited", [None, 0.001])
def test_a_slot_that_was_empty_for_want_of_work_tells_nothing(waited: float | None) -> None:
    assert lane(64, 0.5, 0.2, waited=waited).ahead(64) == 0
