"""The real policy, and the rivals that it is measured against.

Rivals are given what does not make the difference: they choose offers, avoid machines and give up hosts as the policy
does. They differ in when a host is rented, and when it goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

from app.capacity.machines import avoided, paused_until, ranked
from app.capacity.plan import Action, Budget, Destroy, Drain, Host, Pool, Rent, State
from app.capacity.policy import STALLED, decide
from app.capacity.simulation.world import Controller, View

# Seconds, the defaults of KEDA's `cooldownPeriod` and of the stabilisation of a horizontal autoscaler.
COOLDOWN = 300.0
IDLE = 600.0


def policy(pool: Pool, budget: Budget | None = None) -> Controller:
    # What `min` keeps goes with the last ticket of the trace, as the host of `AlwaysOn` does.
    at_the_end = replace(pool, min_hosts=0, idle_minutes=0.0) if pool.min_hosts else pool

    def controller(view: View) -> Sequence[Action]:
        return decide(
            view.now,
            [at_the_end if view.over else pool],
            view.demand,
            view.hosts,
            {pool.name: view.market},
            view.spent,
            view.failures,
            view.measured,
            budget,
        ).actions

    return controller


class _Rival:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __call__(self, view: View) -> Sequence[Action]:
        lost = [
            Destroy(host.id, "no sign of life", failed=True)
            for host in view.hosts
            if host.starting
            and (view.now - host.progress >= STALLED or view.now - host.created >= self.pool.boot_deadline)
        ]
        gone = {action.host for action in lost}
        alive = [host for host in view.hosts if (host.starting or host.state is State.READY) and host.id not in gone]
        drained = [
            Destroy(host.id, "drained") for host in view.hosts if host.state is State.DRAINING and not host.running
        ]
        wanted = self.wanted(view, alive)
        return [*lost, *drained, *self._rented(view, wanted - len(alive)), *self._ended(view, alive, wanted)]

    def wanted(self, view: View, alive: Sequence[Host]) -> int:
        raise NotImplementedError

    def _rented(self, view: View, count: int) -> list[Action]:
        if count <= 0 or paused_until(view.now, self.pool.name, view.failures)[0]:
            return []
        offers = ranked(self.pool, view.market.offers, view.measured, avoided(view.now, view.failures))
        return [Rent(self.pool.name, offer, "wanted") for offer in offers[:count]]

    def _ended(self, view: View, alive: Sequence[Host], wanted: int) -> list[Action]:
        """Those that do least."""
        surplus = sorted(alive, key=lambda host: (host.state is State.READY, host.running, -host.price))
        return [
            Drain(host.id, "surplus") if host.state is State.READY else Destroy(host.id, "surplus")
            for host in surplus[: max(len(alive) - wanted, 0)]
        ]


class AlwaysOn(_Rival):
    """One host, from the beginning to the end."""

    def wanted(self, view: View, alive: Sequence[Host]) -> int:
        return 0 if view.over else 1


class QueueLength(_Rival):
    """KEDA's way: a host for so many tickets that wait or run, as many as it has slots. The most that was wanted within
    the last five minutes holds, and with nothing for five minutes none is left."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._wanted: deque[tuple[float, int]] = deque()

    def wanted(self, view: View, alive: Sequence[Host]) -> int:
        tickets = sum(each.waiting + each.running for each in view.demand.values())
        count = min(ceil(tickets / self.pool.slots), self.pool.max_hosts)
        self._wanted.append((view.now, count))
        while self._wanted[0][0] <= view.now - COOLDOWN:
            self._wanted.popleft()
        return max(count for _, count in self._wanted)


class IdleTimeout(_Rival):
    """One host when something waits, until it has been idle for ten minutes."""

    def wanted(self, view: View, alive: Sequence[Host]) -> int:
        if any(host.state is State.READY and view.now - host.busy >= IDLE for host in alive):
            return 0
        return 1 if alive or any(each.waiting for each in view.demand.values()) else 0


RIVALS: Mapping[str, type[_Rival]] = {
    "one always on": AlwaysOn,
    "queue length": QueueLength,
    "idle time-out": IdleTimeout,
}
