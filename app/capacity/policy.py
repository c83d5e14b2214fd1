"""What to rent, drain and destroy now: pure, so that it can be tried on any day in no time.

A pool's hosts are looked at in this order: the budget ends them; those that failed are given up; more are wanted, or
fewer. docs/capacity.md has the rules on one page.
"""

from collections.abc import Mapping, Sequence

from app.capacity.budget import Purse
from app.capacity.forecast import rate, ready_in, startup
from app.capacity.grow import Need, missing
from app.capacity.machines import absence, avoided, chosen, paused_until
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
from app.capacity.reasons import Blocked, hosts_in_words, minutes_in_words, waiting
from app.capacity.shrink import SETTLED, cheaper, fewer

# Without progress for this many seconds another host is started, and for twice as many this one is given up.
SUSPECT = 150.0
STALLED = 300.0
# A ready host that takes none of the tickets that wait for so many seconds does not work, whatever it says.
IDLE_BESIDE_WORK = 600.0
# Prices are looked at once in so many seconds, for so long, to find a cheaper host than the only one.
PRICES_EVERY, PRICES_FOR = 600.0, 60.0


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

    def decide(self, purse: Purse, market: Market | None) -> Plan:
        over = self._over_budget(purse)
        if over is not None:
            reason = purse.drained(self.pool.name)
            return Plan(over, waiting(self.pool, self.demand, (), Blocked(WaitReason.BUDGET, reason), None))
        lost = self._lost()
        kept = [host for host in self.hosts if host.id not in {action.host for action in lost}]
        useful = [host for host in kept if not self._suspect(host)]
        need = missing(self.now, self.pool, self.demand, useful, self.measured)
        actions: list[Action] = [*lost]
        blocked: Blocked | None = None
        ask: tuple[str, ...] = ()
        if need.any:
            back, need = self._taken_back(kept, need)
            actions += back
            rents, blocked, asking = self._rented(purse, market, kept, need)
            actions += rents
            ask = (self.pool.name,) if asking else ()
        else:
            blocked = Blocked(WaitReason.NOT_YET, need.reason) if need.reason else None
            ends = fewer(self.now, self.pool, self.demand, useful, self.measured)
            actions += ends
            if not need.reason and not ends and len(kept) == 1:
                rents, asking = self._instead(purse, market, kept[0])
                actions += rents
                ask = (self.pool.name,) if asking else ()
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
            if host.passed_over >= IDLE_BESIDE_WORK:
                return f"it took none of the tickets that waited for {host.passed_over / 60:.0f} minutes"
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

    def _taken_back(self, kept: Sequence[Host], need: Need) -> tuple[list[Undrain], Need]:
        """A host that is on its way out is there at once, and is loaded. Returns what is still missing then, too."""
        draining = [host for host in kept if host.state is State.DRAINING and not host.leaving]
        fresh = sorted((host for host in draining if self.now - host.progress < SUSPECT), key=lambda host: host.price)
        back: list[Undrain] = []
        for host in fresh:
            if need.any:
                back.append(Undrain(host.id, need.reason))
                need = need.less(rate(self.pool, host.gpu, self.measured))
        return back, need

    def _rented(
        self, purse: Purse, market: Market | None, kept: Sequence[Host], need: Need
    ) -> tuple[list[Rent], Blocked | None, bool]:
        """Rents what is missing as far as pool, market and budget allow; what stands in the way of the rest; whether
        offers have to be asked for first."""
        pool = self.pool
        present = [host for host in kept if host.state is not State.DESTROYING and not self._suspect(host)]
        room = pool.max_hosts - len(present)
        if not need.any:
            return [], None, False
        if room <= 0:
            message = f"all {hosts_in_words(pool.max_hosts)} of the pool are in use"
            return [], Blocked(WaitReason.MAX_HOSTS, message), False
        until, last = paused_until(self.now, pool.name, self.failures)
        if until:
            message = f"several hosts failed in a row, the last one: {last}; the next try is in"
            return [], Blocked(WaitReason.HOSTS_FAIL, f"{message} {minutes_in_words(until - self.now)}"), False
        if market is None:
            return [], None, True
        suspects = {host.machine for host in self.hosts if self._suspect(host) or host.state is State.DESTROYING}
        without = avoided(self.now, self.failures) | suspects - {""}
        rents: list[Rent] = []
        offers = list(market.offers)
        refused = ""
        while need.any and len(rents) < room:
            offer = chosen(pool, offers, self.measured, without, need.tokens_per_second)
            if offer is None:
                break
            offers.remove(offer)
            refusal = purse.refuses(pool.name, offer.price, self.startup)
            if refusal:
                refused = refused or refusal
                continue
            purse.rent(pool.name, offer.price, self.startup)
            rents.append(Rent(pool.name, offer, need.reason))
            need = need.less(rate(pool, offer.gpu, self.measured))
        if not need.any:
            return rents, None, False
        if len(rents) == room:
            message = f"the pool has {hosts_in_words(pool.max_hosts)} at the most"
            return rents, Blocked(WaitReason.MAX_HOSTS, message), False
        if refused:
            return rents, Blocked(WaitReason.BUDGET, refused), False
        return rents, Blocked(WaitReason.NO_OFFER, absence(pool, market, without)), False

    def _instead(self, purse: Purse, market: Market | None, host: Host) -> tuple[list[Rent], bool]:
        """A cheaper host that is to take the place of the only one; whether offers have to be asked for first."""
        pool = self.pool
        settled = host.state is State.READY and not host.locked and self.now - host.since >= SETTLED
        paused, _ = paused_until(self.now, pool.name, self.failures)
        busy = any(each.arriving for each in self.demand)
        if pool.max_hosts == 1 or paused or not (settled and busy and self.now % PRICES_EVERY < PRICES_FOR):
            return [], False
        if market is None:
            return [], True
        without = avoided(self.now, self.failures)
        offer = cheaper(self.now, pool, self.demand, host, market, without, self.measured)
        if offer is None or purse.refuses(pool.name, offer.price, self.startup):
            return [], False
        purse.rent(pool.name, offer.price, self.startup)
        return [Rent(pool.name, offer, f"it takes the place of one at ${host.price:.2f} an hour")], False

    def _empty(self, kept: Sequence[Host], actions: Sequence[Action]) -> list[Destroy]:
        """Hosts whose last claim is settled."""
        back = {action.host for action in actions if isinstance(action, Undrain)}
        return [
            Destroy(host.id, "drained: its last ticket is done")
            for host in kept
            if host.state is State.DRAINING and not host.running and host.id not in back
        ]
