"""How many hosts more are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from app.capacity.forecast import Supply, backlog, emptied, leisure, rate, startup, supply
from app.capacity.plan import Demand, Host, Measured, Pool, State
from app.capacity.reasons import hosts_in_words, minutes_in_words

# Of what a host must do, so little is not worth another one.
ROUNDING = 0.15
# A start may take this much longer than usual.
SPREAD = 1.25
# Seconds by which a host is started before it would be too late: the time from one decision to the next, twice.
MARGIN = 120.0
# A host has work for this part of what its start takes, at the least; where there is leisure.
WORK = 0.5
# Work of fewer starts than this gathers first, where it may wait: of more, a start is a small part, and the sooner it
# begins, the fewer and the cheaper the hosts that do it in time.
GATHERED = 4.0
# Tokens a second that any host does.
SOME = 1e-9


@dataclass(frozen=True)
class Need:
    """What is missing: `tokens_per_second`, and hosts up to the pool's `min`; and why. Where both are 0, `reason` says
    why nothing is wanted yet."""

    tokens_per_second: float = 0.0
    hosts: int = 0
    reason: str = ""

    @property
    def any(self) -> bool:
        return self.tokens_per_second > 0 or self.hosts > 0

    def less(self, rate: float) -> Need:
        """What is missing beside one more host that does `rate` tokens a second."""
        left = self.tokens_per_second - rate
        return Need(left if left > ROUNDING * rate else 0.0, max(self.hosts - 1, 0), self.reason)


def missing(now: float, pool: Pool, demand: Sequence[Demand], useful: Sequence[Host], measured: Measured) -> Need:
    """What hosts beside the `useful` ones have to do."""
    alive = [host for host in useful if host.starting or host.state is State.READY]
    work = _Work(pool, demand, supply(now, pool, alive, measured), measured)
    need = work.for_wait() if any(each.waiting for each in demand) else Need()
    due = work.for_deadlines()
    if due.tokens_per_second > need.tokens_per_second:
        need = due
    hosts = pool.min_hosts - len(alive)
    if hosts <= 0:
        return need
    return Need(need.tokens_per_second, hosts, need.reason if need.any else f"{pool.min_hosts} hosts at least are kept")


class _Work:
    def __init__(self, pool: Pool, demand: Sequence[Demand], supplies: Sequence[Supply], measured: Measured) -> None:
        self.pool, self.demand, self.supplies = pool, demand, supplies
        self.working = sum(each.rate for each in supplies)
        self.startup = startup(pool, measured)
        # Of the next host: the mean of the GPUs measured, since the market decides which one it will be.
        rates = [each for (name, _), each in measured.tokens_per_second.items() if name == pool.name and each]
        self.rate = sum(rates) / len(rates) if rates else rate(pool, "", measured)
        self.tokens = sum(each.tokens for each in demand)
        # Where tickets may wait for several starts, what comes in is seen in time once it waits.
        self.arriving = 0.0 if pool.target_wait > GATHERED * self.startup else sum(each.lately for each in demand)

    def for_wait(self) -> Need:
        """What brings the wait down to `target_wait`, as far as hosts that start now still can."""
        target = self.pool.target_wait
        oldest = max(each.oldest for each in self.demand if each.waiting)
        done = emptied(self.tokens, self.supplies, self.arriving)
        if done <= target:
            return Need()
        left = backlog(self.startup, self.tokens, self.supplies, self.arriving)
        if self.supplies and left <= target * self.working:
            return Need(reason=f"the wait will be below {minutes_in_words(target)} before another host would be ready")
        slack = target - oldest - self.startup * SPREAD - self.tokens / self.rate - MARGIN
        if not self.supplies and slack > 0 and self.tokens < GATHERED * self.startup * self.rate:
            return Need(
                reason=f"a host is rented in {minutes_in_words(slack)} at the latest, to meet a wait of "
                f"{minutes_in_words(target)}"
            )
        window = max(target - self.startup - oldest, WORK * leisure(self.pool) * self.startup, target / 4)
        short = left / window + self.arriving - self.working
        if self.supplies and short <= ROUNDING * self.rate:
            return Need()
        wait = "for ever" if done == inf else minutes_in_words(done)
        return Need(
            max(short, SOME),
            reason=f"{self.tokens:.0f} tokens wait, which takes {wait} with {hosts_in_words(len(self.supplies))}; "
            f"a wait of {minutes_in_words(target)} is allowed",
        )

    def for_deadlines(self) -> Need:
        """What finishes in time that which expires; only once waiting longer would miss it."""
        need, of_models = Need(), dict[str, float]()
        deadlines = [(deadline, each.model) for each in self.demand for deadline in each.deadlines]
        for deadline, model in sorted(deadlines, key=lambda of: of[0].seconds):
            of_models[model] = max(of_models.get(model, 0.0), deadline.tokens)
            due = sum(of_models.values())
            short = backlog(deadline.seconds, due, self.supplies)
            spare = deadline.seconds - self.startup
            if short <= 0 or spare <= 0:
                continue
            if deadline.seconds - self.startup * SPREAD - short / self.rate > MARGIN:
                continue
            if short / spare > need.tokens_per_second:
                minutes = minutes_in_words(deadline.seconds)
                need = Need(short / spare, reason=f"{due:.0f} tokens are due in {minutes}, when tickets expire")
        return need
