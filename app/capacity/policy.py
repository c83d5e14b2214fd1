"""What to rent, drain and destroy now: pure, so that it can be tried on any day in no time.

A pool's hosts are looked at in this order: the budget ends them; those that failed are given up; more are wanted, or
fewer. docs/capacity.md has the rules on one page.
"""

from collections.abc import Mapping, Sequence
from math import ceil, inf

from app.capacity.budget import Purse
from app.capacity.forecast import Supply, backlog, emptied, ready_in, startup, supply
from app.capacity.forecast import rate as rate_of
from app.capacity.machines import absence, avoided, paused_until, ranked
from app.capacity.plan import (
    Action,
    Budget,
    Demand,
    Destroy,
    Drain,
    Failure,
    Host,
    Market,
    Measured,
    Plan,
    Pool,
    Rent,
    Spent,
    State,
    Undrain,
    WaitReason,
)
from app.capacity.reasons import Blocked, waiting
from app.capacity.shrink import fewer

# Without progress for this many seconds another host is started, and for twice as many this one is given up.
SUSPECT = 150.0
STALLED = 300.0
# Of what a host must do, so little is not worth another one.
ROUNDING = 0.15
# A start may take this much longer than usual.
SPREAD = 1.25
# Seconds by which a host is started before it would be too late: the time from one decision to the next, twice.
MARGIN = 120.0


def decide(
    now: float,
    pools: Sequence[Pool],
    demand: Mapping[str, Demand],
    hosts: Sequence[Host],
    markets: Mapping[str, Market],
    spent: Spent,
    failures: Sequence[Failure] = (),
    measured: Measured | None = None,
    budget: Budget | None = None,
) -> Plan:
    """The actions of this moment, each with its reason, and why tickets wait.

    `demand` is by model, `markets` by pool: a pool that is not in it and wants a host stands in `ask` of the plan.
    `hosts` are all that have not ended; `budget` is over all pools. To be called every minute at the least, since the
    budgets are held from one call to the next.
    """
    purse = Purse(now, pools, budget or Budget(), spent, hosts)
    figures = measured or Measured()
    plans = [
        _Pool(now, pool, [demand.get(model, Demand(model)) for model in pool.models], hosts, failures, figures).decide(
            purse, markets.get(pool.name)
        )
        for pool in pools
    ]
    return Plan(
        actions=tuple(action for plan in plans for action in plan.actions),
        waiting=tuple(each for plan in plans for each in plan.waiting),
        ask=tuple(name for plan in plans for name in plan.ask),
    )


class _Pool:
    """One pool at one moment."""

    def __init__(
        self,
        now: float,
        pool: Pool,
        demand: Sequence[Demand],
        hosts: Sequence[Host],
        failures: Sequence[Failure],
        measured: Measured,
    ) -> None:
        self.now, self.pool, self.demand, self.failures, self.measured = now, pool, demand, failures, measured
        self.hosts = [host for host in hosts if host.pool == pool.name and not host.ended]
        self.startup = startup(pool, measured)
        self.tokens = sum(each.tokens for each in demand)
        self.arriving = sum(each.arriving for each in demand)
        self.asked = any(each.waiting for each in demand)

    def decide(self, purse: Purse, market: Market | None) -> Plan:
        over = self._over_budget(purse)
        if over is not None:
            reason = purse.drained(self.pool.name)
            return Plan(over, waiting(self.pool, self.demand, (), Blocked(WaitReason.BUDGET, reason), None))
        lost = self._lost()
        kept = [host for host in self.hosts if host.id not in {action.host for action in lost}]
        useful = [host for host in kept if not self._suspect(host)]
        count, reason = self._wanted(useful)
        actions: list[Action] = [*lost]
        blocked: Blocked | None = None
        ask: tuple[str, ...] = ()
        if count > 0:
            back = self._taken_back(kept, count, reason)
            actions += back
            rents, blocked, asking = self._rented(purse, market, kept, count - len(back), reason)
            actions += rents
            ask = (self.pool.name,) if asking else ()
        else:
            blocked = Blocked(WaitReason.NOT_YET, reason) if reason else None
            actions += fewer(self.now, self.pool, self.demand, useful, self.measured)
        actions += self._empty(kept, actions)
        renting = any(isinstance(action, Rent | Undrain) for action in actions)
        starting = [
            (host, self.now + ready_in(self.now, self.pool, host, self.measured)) for host in useful if host.starting
        ]
        soon = self.now + self.startup if renting else None
        return Plan(tuple(actions), waiting(self.pool, self.demand, starting, blocked, soon), ask)

    def _over_budget(self, purse: Purse) -> tuple[Action, ...] | None:
        """None while there is money. A host that is not ready could not finish anything, so it goes first."""
        ending, draining = purse.ended(self.pool.name), purse.drained(self.pool.name)
        if not draining:
            return None
        actions: list[Action] = []
        for host in self.hosts:
            if host.state is State.DESTROYING:
                continue
            if ending:
                actions.append(Destroy(host.id, ending))
            elif host.state is State.READY:
                actions.append(Drain(host.id, draining))
            elif host.starting or not host.running:
                actions.append(Destroy(host.id, draining))
        return tuple(actions)

    def _lost(self) -> list[Destroy]:
        """Hosts that are given up, and those that somebody has asked to leave."""
        actions: list[Destroy] = []
        for host in self.hosts:
            reason = self._failure(host)
            if host.state is State.DESTROYING:
                continue
            if host.interrupted:
                actions.append(Destroy(host.id, "its provider took it away", failed=True))
            elif reason:
                actions.append(Destroy(host.id, reason, failed=True))
        return actions

    def _failure(self, host: Host) -> str:
        if host.state is State.READY:
            # The walk ends one that does not answer, and writes nothing down while it is well.
            return ""
        silent = self.now - host.progress
        # What a host on its way out has in hand may yet come.
        patience = 3 * STALLED if host.state is State.DRAINING else STALLED
        if silent >= patience:
            return f"no sign of life for {silent / 60:.0f} minutes while {host.state}"
        if host.starting and self.now - host.created >= self.pool.boot_deadline:
            return f"not ready {self.pool.boot_deadline / 60:.0f} minutes after it was rented"
        return ""

    def _suspect(self, host: Host) -> bool:
        """It may be lost: nothing is built on it, and another one starts before it is given up."""
        return self.now - host.progress >= SUSPECT and (host.starting or host.state is State.DESTROYING)

    def _wanted(self, useful: Sequence[Host]) -> tuple[int, str]:
        """How many hosts more, and why; with 0 a reason says why none is wanted yet."""
        alive = [host for host in useful if host.starting or host.state is State.READY]
        missing = self.pool.min_hosts - len(alive)
        supplies = supply(self.now, self.pool, alive, self.measured)
        count, reason = self._for_wait(supplies) if self.asked else (0, "")
        due, why = self._for_deadlines(supplies)
        if due > count:
            count, reason = due, why
        if missing > max(count, 0):
            return missing, f"{self.pool.min_hosts} hosts at least are kept"
        return count, reason

    def _for_wait(self, supplies: Sequence[Supply]) -> tuple[int, str]:
        """Hosts that bring the wait down to `target_wait`, as far as one that starts now still can."""
        pool, rate, target = self.pool, self._rate(), self.pool.target_wait
        oldest = max(each.oldest for each in self.demand if each.waiting)
        done = emptied(self.tokens, supplies, self.arriving)
        if done <= target:
            return 0, ""
        left = backlog(self.startup, self.tokens, supplies, self.arriving)
        if left <= 0:
            return 0, f"the queue is empty in {_minutes(done)}, before another host would be ready"
        slack = target - oldest - self.startup * SPREAD - self.tokens / rate - MARGIN
        if not supplies and slack > 0:
            return 0, f"a host is rented in {_minutes(slack)} at the latest, to meet a wait of {_minutes(target)}"
        window = max(target - self.startup - oldest, target / 4) if target > self.startup else target
        working = sum(each.rate for each in supplies)
        count = ceil((left / window + self.arriving - working) / rate - ROUNDING)
        if not supplies:
            count = max(count, 1)
        wait = "for ever" if done == inf else _minutes(done)
        return max(count, 0), (
            f"{self.tokens:.0f} tokens wait, which takes {wait} with {_hosts(len(supplies))}; "
            f"a wait of {_minutes(pool.target_wait)} is allowed"
        )

    def _for_deadlines(self, supplies: Sequence[Supply]) -> tuple[int, str]:
        """Hosts that finish what expires in time; only once waiting longer would miss it."""
        rate, due, wanted, reason = self._rate(), 0.0, 0, ""
        deadlines = [deadline for each in self.demand for deadline in each.deadlines]
        for deadline in sorted(deadlines, key=lambda deadline: deadline.seconds):
            due += deadline.tokens
            short = backlog(deadline.seconds, due, supplies)
            spare = deadline.seconds - self.startup
            if short <= 0 or spare <= 0:
                continue
            if deadline.seconds - self.startup * SPREAD - short / rate > MARGIN:
                continue
            count = max(ceil(short / rate / spare - ROUNDING), 1)
            if count > wanted:
                wanted, reason = count, f"{due:.0f} tokens expire in {_minutes(deadline.seconds)}"
        return wanted, reason

    def _taken_back(self, kept: Sequence[Host], count: int, reason: str) -> list[Undrain]:
        """A host that is on its way out is there at once, and is loaded."""
        draining = [host for host in kept if host.state is State.DRAINING and not host.leaving]
        fresh = [host for host in draining if self.now - host.progress < SUSPECT]
        return [Undrain(host.id, reason) for host in sorted(fresh, key=lambda host: host.price)[:count]]

    def _rented(
        self, purse: Purse, market: Market | None, kept: Sequence[Host], count: int, reason: str
    ) -> tuple[list[Rent], Blocked | None, bool]:
        """Rents as many of `count` as the pool, the market and the budget allow; what stands in the way of the rest;
        whether offers have to be asked for first."""
        pool = self.pool
        present = [host for host in kept if host.state is not State.DESTROYING and not self._suspect(host)]
        room = pool.max_hosts - len(present)
        if count <= 0:
            return [], None, False
        if room <= 0:
            return [], Blocked(WaitReason.MAX_HOSTS, f"all {_hosts(pool.max_hosts)} of the pool are in use"), False
        until, last = paused_until(self.now, pool.name, self.failures)
        if until:
            message = f"several hosts failed in a row, the last one: {last}; the next try is in"
            return [], Blocked(WaitReason.HOSTS_FAIL, f"{message} {_minutes(until - self.now)}"), False
        if market is None:
            return [], None, True
        suspects = {host.machine for host in self.hosts if self._suspect(host) or host.state is State.DESTROYING}
        without = avoided(self.now, self.failures) | suspects
        rents: list[Rent] = []
        offers = ranked(pool, market, self.measured, without)
        refused = ""
        for offer in offers:
            if len(rents) == min(count, room):
                break
            refusal = purse.refuses(pool.name, offer.price, self.startup)
            if refusal:
                refused = refused or refusal
                continue
            purse.rent(pool.name, offer.price, self.startup)
            rents.append(Rent(pool.name, offer, reason))
        if len(rents) == count:
            return rents, None, False
        if len(rents) == room:
            return rents, Blocked(WaitReason.MAX_HOSTS, f"the pool has {_hosts(pool.max_hosts)} at the most"), False
        if refused:
            return rents, Blocked(WaitReason.BUDGET, refused), False
        return rents, Blocked(WaitReason.NO_OFFER, absence(pool, market, without)), False

    def _empty(self, kept: Sequence[Host], actions: Sequence[Action]) -> list[Destroy]:
        """Hosts whose last claim is settled."""
        back = {action.host for action in actions if isinstance(action, Undrain)}
        return [
            Destroy(host.id, "drained: its last ticket is done")
            for host in kept
            if host.state is State.DRAINING and not host.running and host.id not in back
        ]

    def _rate(self) -> float:
        """Of the next host: the mean of the GPUs measured, since the market decides which one it will be."""
        rates = [rate for (pool, _), rate in self.measured.tokens_per_second.items() if pool == self.pool.name]
        return sum(rates) / len(rates) if rates else rate_of(self.pool, "", self.measured)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _hosts(count: int) -> str:
    return f"{count} host{'' if count == 1 else 's'}"
