"""What came of a trace under each controller, beside the others and beside hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.capacity.simulation.controllers import RIVALS, policy
from app.capacity.simulation.hindsight import cheapest
from app.capacity.simulation.market import Machines
from app.capacity.simulation.traces import MADE, Trace, make, recorded
from app.capacity.simulation.world import Run, Sample, World

POLICY = "the policy"
NAMES = (POLICY, *RIVALS)
# Figures that differ by less are equal.
EQUAL = 0.05
WORDS = {-1: "better", 0: "equal", 1: "worse"}
# Of what hindsight costs.
NEAR = 1.25


@dataclass(frozen=True)
class Figures:
    """Dollars, seconds that tickets waited, and minutes of hosts."""

    dollars: float
    p50: float
    p95: float
    idle_while_waiting: float
    without_work: float
    billed: float
    rented: int
    failed: int
    unanswered: int

    @classmethod
    def of(cls, run: Run) -> Figures:
        p50, p95 = (float(each) for each in np.percentile(run.waits, (50, 95)))
        idle, without_work, billed = run.idle_while_waiting / 60, run.without_work / 60, run.billed / 60
        lost = run.left + run.expired
        return cls(run.dollars, p50, p95, idle, without_work, billed, run.rented, run.failed, lost)


def trace_of(name: str, seed: int) -> Trace:
    """Made from the seed, or recorded in the file of that name; raises UnusableTrace."""
    return make(name, seed) if name in MADE else recorded(Path(name))


def simulated(name: str, seed: int, controller: str) -> tuple[Figures, list[Sample]]:
    trace = trace_of(name, seed)
    run = World(trace, seed).run(policy(trace.pool) if controller == POLICY else RIVALS[controller](trace.pool))
    return Figures.of(run), run.samples


def hindsight(name: str, seed: int) -> float:
    """Dollars."""
    trace = trace_of(name, seed)
    return cheapest(trace, Machines(trace.pool, seed, trace.closed))


def mean(figures: Sequence[Figures]) -> Figures:
    fields = Figures.__dataclass_fields__
    return Figures(**{name: sum(getattr(each, name) for each in figures) / len(figures) for name in fields})


def verdict(ratios: Sequence[float]) -> str:
    """How near to hindsight the policy was, run by run."""
    near = sum(ratio <= NEAR for ratio in ratios)
    return f"{min(ratios):.2f} to {max(ratios):.2f} of hindsight, {near} of {len(ratios)} within {NEAR}"


def beside(ours: Figures, rival: Figures, target: float, bound: float) -> str:
    """How the policy does beside a rival, in words. `bound`: what hindsight costs, which meets the target."""
    cost, wait = _compared(ours.dollars, rival.dollars), _compared(ours.p95, rival.p95)
    money, seconds = f"${ours.dollars:.2f}, not ${rival.dollars:.2f}", f"{ours.p95:,.0f} s, not {rival.p95:,.0f} s"
    words = f"cost {WORDS[cost]} ({money}), p95 wait {WORDS[wait]} ({seconds})"
    if _compared(max(target, ours.p95), rival.p95) < 0:
        cheap = f"; so cheap only by that: hindsight, which meets it, costs ${bound:.2f}"
        return f"{words}; it misses target_wait{cheap if rival.dollars < bound else ''}"
    if cost + wait > 0 and cost >= 0 and wait >= 0:
        return f"{words}; it is the better one"
    return words


def _compared(ours: float, theirs: float) -> int:
    """-1 where ours is less, 1 where it is more."""
    # Seconds or dollars that nobody notices are equal, too.
    if abs(ours - theirs) <= max(EQUAL * theirs, 0.01):
        return 0
    return -1 if ours < theirs else 1
