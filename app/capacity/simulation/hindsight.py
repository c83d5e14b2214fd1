"""The cheapest schedule that meets `target_wait`, by somebody who knew the whole trace: a dynamic programme.

It is a bound, and kind to the schedule that it finds. The hosts of a schedule are the best offers of the market: the
first few by tokens for a dollar, or the cheapest few of one GPU, whichever comes to less; they are always to be had,
and none is of a machine whose first start would fail. Each start takes and bills the pool's `startup`, never fails, and
may be before the trace begins, so that a host is ready when the first ticket comes; an end takes no time. Work is a
fluid in steps of a minute: a host does its tokens a second of whatever waits. A minute in which anything comes has at
least three seconds of work for a host.

What waits at the end of a step may have come within `target_wait`, or, where `max` hosts that work from the first
ticket on cannot do that, it may be as much as they would leave. No host is started while the market is closed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.capacity.simulation.market import GPUS, Machine, Machines
from app.capacity.simulation.traces import Trace

STEP = 60.0
# What the pool's definition says of a host's work in a step is counted in so many parts.
PARTS = 20
# Hours after the trace in which work may still be done.
AFTER = 4

Array = NDArray[np.float64]


def cheapest(trace: Trace, machines: Machines) -> float:
    """Dollars."""
    pool = trace.pool
    fit = [
        each
        for each in machines.machines.values()
        if each.offer.price <= pool.max_price
        and each.offer.vram_gb >= pool.vram
        and machines.fate(each.offer.machine).stuck is None
    ]
    fit.sort(key=lambda each: each.offer.price / each.speed)
    orders = [fit, *([each for each in fit if each.offer.gpu == gpu] for gpu, *_ in GPUS)]
    return min(_cost(trace, order[: pool.max_hosts]) for order in orders if len(order) >= pool.max_hosts)


def _cost(trace: Trace, machines: Sequence[Machine]) -> float:
    """Of schedules in which the first of `machines` run, more or fewer of them at each step."""
    pool = trace.pool
    part = pool.tokens_per_second * STEP / PARTS
    steps = int(np.ceil(trace.seconds / STEP) + AFTER * 3600 / STEP)
    came = _came(trace, part, steps)
    closed = np.array([_closed(trace, number * STEP - pool.startup) for number in range(steps)])
    work = np.cumsum([0, *(round(each.speed * PARTS) for each in machines)]).astype(int)
    prices = np.array([each.offer.price for each in machines])
    running = np.cumsum([0.0, *prices]) * STEP / 3600
    starting = prices * pool.startup / 3600
    fastest = _worked_off(came, np.where(np.cumsum(~closed) > 0, work[-1], 0))
    lag = int(pool.target_wait // STEP)
    early = np.concatenate([np.zeros(lag), came[: steps + 1 - lag]])
    allowed = (came - np.minimum(early, fastest)).astype(int)
    best: Array = np.full((len(work), int(allowed.max()) + 1), np.inf)
    best[:, 0] = np.cumsum([0.0, *starting])
    for step in range(steps):
        # One host fewer costs nothing, one more its start.
        for fewer in range(len(work) - 2, -1, -1):
            np.minimum(best[fewer], best[fewer + 1], out=best[fewer])
        if not closed[step]:
            for more in range(1, len(work)):
                np.minimum(best[more], best[more - 1] + starting[more - 1], out=best[more])
        new = int(came[step + 1] - came[step])
        following = np.full_like(best, np.inf)
        for count, done in enumerate(work):
            _move(best[count], following[count], new - int(done), int(allowed[step + 1]), running[count])
        best = following
    return float(best[:, 0].min())


def _came(trace: Trace, part: float, steps: int) -> Array:
    """Parts of work that have come by the end of each step, rounded down."""
    at = (np.array([each.at for each in trace.arrivals]) // STEP).astype(int)
    tokens = np.bincount(at, [each.tokens for each in trace.arrivals], steps)[:steps]
    parts = np.diff(np.floor(np.cumsum(tokens) / part), prepend=0.0)
    return np.concatenate([[0.0], np.cumsum(np.where(tokens > 0, np.maximum(parts, 1.0), 0.0))])


def _move(before: Array, after: Array, change: int, allowed: int, cost: float) -> None:
    """What waits grows by `change`, and not beyond what is allowed."""
    if change >= 0:
        size = max(min(len(before), allowed + 1 - change), 0)
        after[change : change + size] = before[:size] + cost
    else:
        after[0] = before[: 1 - change].min() + cost
        size = max(min(len(before) + change, allowed + 1), 0)
        after[1:size] = before[1 - change : size - change] + cost


def _closed(trace: Trace, at: float) -> bool:
    return any(since <= at < until for since, until in trace.closed)


def _worked_off(came: Array, work: NDArray[np.int_]) -> Array:
    """What is done by the end of each step where so much can be done in it."""
    done = np.zeros_like(came)
    for step, most in enumerate(work):
        done[step + 1] = min(done[step] + most, came[step + 1])
    return done
