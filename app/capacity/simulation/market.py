"""A market of machines: what they cost, how fast they are, how long they take to start, and how they fail."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.capacity.plan import Market, Pool
from app.capacity.simulation.traces import HOUR
from nvidia_triton.providers.base import Offer, Removed

# GPU, GB of memory, how fast beside what the pool's definition says, dollars an hour from and to.
GPUS = (
    ("RTX 3090", 24, 0.6, 0.17, 0.30),
    ("RTX 4090", 24, 1.0, 0.33, 0.55),
    ("L40S", 48, 1.3, 0.60, 0.90),
    ("A100 SXM4", 80, 2.0, 0.75, 1.30),
)
MACHINES = 40
# An offer is there in so many of its hours.
PRESENT = 0.7
# Of the machines so many fail half of their starts, the others one in fifty.
BAD, BAD_FAILS, FAILS = 0.15, 0.5, 0.02
# The start of a host takes as long as the pool says on average, with this spread of its logarithm.
SPREAD = 0.3
# Hours that a host serves until it dies, on average.
LIFE = 300.0


@dataclass(frozen=True)
class Machine:
    offer: Offer
    speed: float
    fails: float


@dataclass(frozen=True)
class Fate:
    """What becomes of one host. `startup`: seconds to `ready`. `stuck`: it stops at that part of its start and says
    nothing. `broken`: it says so. `doubtful`: seconds in which nobody knows whether it was made. `life`: seconds until
    it dies. `ending`: seconds from the order to its end."""

    startup: float
    stuck: float | None
    broken: bool
    doubtful: float
    life: float
    ending: float


class Machines:
    """All that is drawn depends on the seed, the machine and how often it was rented: every controller that rents the
    same machine for the same time has the same luck."""

    def __init__(
        self,
        pool: Pool,
        seed: int,
        closed: Sequence[tuple[float, float]] = (),
        count: int = MACHINES,
        fails: float | None = None,
    ) -> None:
        """`fails`: the part of all starts that do, whatever the machine."""
        self._pool, self._seed, self._closed = pool, seed, closed
        draw = random.Random(f"{seed} machines")
        self.machines: dict[str, Machine] = {}
        for number in range(count):
            gpu, vram, speed, low, high = GPUS[number % len(GPUS)]
            price = round(draw.uniform(low, high), 3)
            offer = Offer(f"o{number}", f"m{number}", gpu, 1, vram, price, round(price / 30, 4))
            of_machine = BAD_FAILS if draw.random() < BAD else FAILS
            self.machines[offer.machine] = Machine(offer, speed, of_machine if fails is None else fails)
        self._rented: dict[str, int] = {}
        self._cache: tuple[object, Market] = (None, Market())

    def offered(self, at: float, without: Collection[str]) -> Market:
        """What is offered at that moment, without machines that are taken."""
        key = (at // HOUR, self.open(at), frozenset(without))
        if self._cache[0] != key:
            self._cache = (key, self._market(at, without))
        return self._cache[1]

    def open(self, at: float) -> bool:
        return not any(since <= at < until for since, until in self._closed)

    def fate(self, machine: str) -> Fate:
        times = self._rented[machine] = self._rented.get(machine, 0) + 1
        draw = random.Random(f"{self._seed} {machine} {times}")
        startup = self._pool.startup * draw.lognormvariate(-(SPREAD**2) / 2, SPREAD)
        fails = draw.random() < self.machines[machine].fails
        broken = draw.random() < 0.5
        return Fate(
            startup=startup,
            stuck=draw.uniform(0.05, 0.95) if fails else None,
            broken=fails and broken,
            doubtful=draw.uniform(10, 60) if draw.random() < 0.02 else 0.0,
            life=draw.expovariate(1 / (LIFE * HOUR)),
            ending=draw.uniform(120, 600) if draw.random() < 0.03 else draw.uniform(5, 30),
        )

    def _market(self, at: float, without: Collection[str]) -> Market:
        if not self.open(at):
            return Market(removed=(Removed("rentable", "nobody offers a host", len(self.machines)),))
        hour = int(at // HOUR)
        return Market(
            tuple(
                each.offer
                for each in self.machines.values()
                if each.offer.machine not in without
                and random.Random(f"{self._seed} {each.offer.machine} at {hour}").random() < PRESENT
            )
        )
