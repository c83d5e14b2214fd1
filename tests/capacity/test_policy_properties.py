"""What the policy never does, whatever comes and whatever the market does: tried in simulated time on random days.

A failing example is printed with what makes it; `make test-long` looks at many more of them, and at others each time.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.capacity.plan import Action, Budget, Destroy, Drain, Host, Measured, Pool, Rent, Spent, State
from app.capacity.policy import STALLED, SUSPECT, decide
from app.capacity.shrink import IDLE
from app.capacity.simulation.controllers import policy
from app.capacity.simulation.ledger import Ledger
from app.capacity.simulation.market import Machines
from app.capacity.simulation.traces import HOUR, MODEL, Arrival, Trace
from app.capacity.simulation.world import START, View, World

SLOW = [HealthCheck.too_slow]
SHORT = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=SLOW,
)
LONG = settings(max_examples=1000, deadline=None, phases=[Phase.generate], suppress_health_check=SLOW, print_blob=True)
BEGIN = 23 * HOUR

pools = st.builds(
    Pool,
    name=st.just("p"),
    models=st.just((MODEL,)),
    min_hosts=st.integers(0, 1),
    max_hosts=st.integers(1, 6),
    target_wait=st.sampled_from([5.0, 60.0, 900.0, 7200.0]),
    idle_minutes=st.sampled_from([None, 1.0, 10.0, 30.0]),
    max_price=st.sampled_from([0.3, 0.8, 2.0]),
    slots=st.sampled_from([1, 4, 16]),
    tokens_per_second=st.sampled_from([50.0, 400.0, 3000.0]),
    startup=st.sampled_from([60.0, 300.0, 900.0]),
)
dollars = st.one_of(st.none(), st.floats(0.05, 6.0).map(lambda amount: round(amount, 2)))
budgets = st.builds(Budget, hour=dollars, day=dollars, month=dollars, total=dollars)
seeds = st.integers(0, 2**32 - 1)
spans = st.sampled_from([20.0, 30.0, 60.0])
together = st.lists(st.tuples(pools, budgets), min_size=2, max_size=3)


def some_day(pool: Pool, seed: int, *, hard: bool) -> Trace:
    """Bursts, single tickets and pauses around midnight; where it is `hard`, some expire, and the market closes."""
    draw = random.Random(seed)
    arrivals: list[Arrival] = []
    for _ in range(draw.randint(1, 5)):
        at, many = BEGIN + draw.uniform(0, 1.5 * HOUR), draw.choice([1, 3, 30, 300])
        spread = draw.choice([0.0, 60.0, 1800.0])
        arrivals += [
            Arrival(
                at + draw.uniform(0, spread),
                float(draw.randint(1, 3000)),
                pool.models[0],
                expires_in=draw.choice([None, None, None, 900.0, 3600.0]) if hard else None,
            )
            for _ in range(many)
        ]
    arrivals.sort(key=lambda each: each.at)
    closed = [(BEGIN + draw.uniform(0, HOUR), BEGIN + draw.uniform(HOUR, 3 * HOUR))] if hard else []
    return Trace("random", "random", arrivals, arrivals[-1].at + 1, pool, closed)


class Watch:
    """Looks at each decision; locks hosts on every so many machines, on none with 0."""

    def __init__(self, pool: Pool, lock: int) -> None:
        self.pool, self.lock = pool, lock
        self.world: World | None = None

    def __call__(self, view: View, actions: Sequence[Action]) -> None:
        hosts = {host.id: host for host in view.hosts}
        ended = {action.host for action in actions if isinstance(action, Destroy)}
        ordered = {action.host for action in actions if not isinstance(action, Rent)}
        present = [
            host
            for host in view.hosts
            if host.state is not State.DESTROYING
            and host.id not in ended
            and not (host.starting and view.now - host.progress >= SUSPECT)
        ]
        rents = sum(isinstance(action, Rent) for action in actions)
        assert rents == 0 or len(present) + rents <= self.pool.max_hosts
        for action in actions:
            assert action.reason
            if isinstance(action, Drain | Destroy):
                self._check_end(hosts[action.host], action)
        for host in view.hosts:
            if host.id not in ordered and host.state is not State.DESTROYING and not host.locked:
                self._check_reason(host, view, ordered)
        assert self.world is not None
        for each in self.world.hosts.values():
            each.locked = self.lock > 0 and int(each.offer.machine[1:]) % self.lock == 0

    def _check_end(self, host: Host, action: Drain | Destroy) -> None:
        forced = action.reason.startswith("the budget") or (isinstance(action, Destroy) and action.failed)
        if host.locked and host.state is not State.DRAINING:
            assert forced, action
        if host.running and isinstance(action, Destroy):
            assert forced, action
        if isinstance(action, Destroy) and action.failed:
            assert host.state is not State.READY, action

    def _check_reason(self, host: Host, view: View, ordered: Collection[str]) -> None:
        """It bills, so it is wanted."""
        if host.state is State.DRAINING:
            assert host.running, host
            return
        others = [
            each
            for each in view.hosts
            if each is not host
            and each.id not in ordered
            and (each.state is State.READY or (each.starting and view.now - each.progress < SUSPECT))
        ]
        if len(others) < self.pool.min_hosts or view.demand[self.pool.models[0]].waiting:
            return
        if host.state is State.READY:
            most = IDLE if self.pool.idle_minutes is None else self.pool.idle_minutes * 60
            assert host.running or view.now - host.busy < most, host
        else:
            assert view.now - host.progress < STALLED, host
            assert others or view.now - host.progress >= SUSPECT, host


def holds(pool: Pool, own: Budget, file: Budget, seed: int, every: float, machines: int, lock: int) -> None:
    pool = replace(pool, budget=own)
    trace = some_day(pool, seed, hard=True)
    market = Machines(pool, seed, trace.closed, machines, fails=(0.0, 0.1, 0.5)[seed % 3])
    watch = Watch(pool, lock)
    watch.world = world = World(trace, seed, every, watch=watch, machines=market, begin=BEGIN, after=HOUR)
    world.run(policy(pool, file))
    for budget in (own, file):
        never_exceeded(budget, world.ledger)


def never_exceeded(budget: Budget, ledger: Ledger) -> None:
    for window in ("hour", "day", "month"):
        limit = getattr(budget, window)
        assert limit is None or ledger.most.get(window, 0.0) <= limit, window
    assert budget.total is None or ledger.total <= budget.total


def hold_together(own: Sequence[tuple[Pool, Budget]], file: Budget, seed: int, every: float) -> None:
    """Several pools, each with days and machines of its own, under one budget over all of them."""
    pools = [
        replace(pool, name=f"p{number}", models=(f"m{number}",), budget=budget)
        for number, (pool, budget) in enumerate(own)
    ]
    together = Ledger(START + BEGIN)
    worlds = []
    for number, pool in enumerate(pools):
        trace = some_day(pool, seed + number, hard=True)
        watch = Watch(pool, lock=0)
        market = Machines(pool, seed + number, trace.closed, fails=0.1)
        world = watch.world = World(
            trace, seed + number, every, watch=watch, machines=market, begin=BEGIN, together=together
        )
        worlds.append(world)
    at, end = BEGIN, max(world.trace.seconds for world in worlds) + HOUR
    while at < end:
        views = [world.look(at) for world in worlds]
        plan = decide(
            views[0].now,
            pools,
            {model: demand for view in views for model, demand in view.demand.items()},
            [host for view in views for host in view.hosts],
            {pool.name: view.market for pool, view in zip(pools, views, strict=True)},
            Spent({name: spent for view in views for name, spent in view.spent.pools.items()}, together.amounts()),
            [failure for view in views for failure in view.failures],
            Measured(
                {key: rate for view in views for key, rate in view.measured.tokens_per_second.items()},
                {name: seconds for view in views for name, seconds in view.measured.startup.items()},
                {name: spells for view in views for name, spells in view.measured.quiet.items()},
            ),
            file,
        )
        for world, view in zip(worlds, views, strict=True):
            hosts = {host.id for host in view.hosts}
            world.act(
                view,
                [
                    action
                    for action in plan.actions
                    if (action.pool == world.pool.name if isinstance(action, Rent) else action.host in hosts)
                ],
            )
        at += every
    assert together.total == pytest.approx(sum(world.ledger.total for world in worlds), abs=0.05)
    never_exceeded(file, together)
    for world in worlds:
        never_exceeded(world.pool.budget, world.ledger)


def answers(pool: Pool, seed: int, every: float) -> None:
    trace = some_day(pool, seed, hard=False)
    market = Machines(pool, seed, count=12, fails=0.05)
    world = World(trace, seed, every, machines=market, begin=BEGIN, after=4 * 24 * HOUR)
    decided = policy(pool)

    def controller(view: View) -> Sequence[Action]:
        return [Destroy(host.id, "the end") for host in view.hosts] if view.over else decided(view)

    assert world.run(controller).left == 0


@SHORT
@given(pools, budgets, budgets, seeds, spans, st.integers(0, 12), st.sampled_from([0, 1, 3]))
def test_no_budget_is_exceeded_and_no_host_bills_without_a_reason(
    pool: Pool, own: Budget, file: Budget, seed: int, every: float, machines: int, lock: int
) -> None:
    holds(pool, own, file, seed, every, machines, lock)


@SHORT
@given(pools, seeds, spans)
def test_no_ticket_is_left_while_there_are_offers_and_money(pool: Pool, seed: int, every: float) -> None:
    answers(pool, seed, every)


@settings(SHORT, max_examples=8)
@given(together, budgets, seeds, spans)
def test_several_pools_never_exceed_the_budget_over_all(
    own: Sequence[tuple[Pool, Budget]], file: Budget, seed: int, every: float
) -> None:
    hold_together(own, file, seed, every)


@pytest.mark.long
@LONG
@given(together, budgets, seeds, spans)
def test_several_pools_never_exceed_the_budget_over_all_on_many_days(
    own: Sequence[tuple[Pool, Budget]], file: Budget, seed: int, every: float
) -> None:
    hold_together(own, file, seed, every)


@pytest.mark.long
@LONG
@given(pools, budgets, budgets, seeds, spans, st.integers(0, 12), st.sampled_from([0, 1, 3]))
def test_no_budget_is_exceeded_on_many_days(
    pool: Pool, own: Budget, file: Budget, seed: int, every: float, machines: int, lock: int
) -> None:
    holds(pool, own, file, seed, every, machines, lock)


@pytest.mark.long
@LONG
@given(pools, seeds, spans)
def test_no_ticket_is_left_on_many_days(pool: Pool, seed: int, every: float) -> None:
    answers(pool, seed, every)
