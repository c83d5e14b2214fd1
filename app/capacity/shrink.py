"""Which hosts are no longer needed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from app.capacity.forecast import emptied, leisure, rate, ready_in, startup, supply
from app.capacity.machines import ranked
from app.capacity.plan import Demand, Destroy, Drain, Host, Market, Measured, Pool, State
from nvidia_triton.providers.base import Offer

# The rest can do without a host where what comes in takes this part of what they can do, and what waits is done within
# that part of `target_wait`. Without leisure, so much of the first.
LOAD, HURRIED = 0.9, 0.75
QUEUE = 0.25
# Beside others that can do the work, a host goes after this many seconds without any.
SURPLUS = 60.0
# A host that others could do without is not drained within so many seconds of the last one's start.
SETTLED = 300.0
# Seconds in which a host that takes another one's place must have saved what its start costs.
PAYBACK = 3600.0
# Seconds that the last host stays without work, where that is not said: at the most, and as long as fewer quiet spells
# than this are known.
IDLE = 600.0
KNOWN = 5
# A start is avoided for so many times its seconds.
START = 1.5


def fewer(
    now: float, pool: Pool, demand: Sequence[Demand], hosts: Sequence[Host], measured: Measured
) -> list[Drain | Destroy]:
    """Hosts to end for want of work: those that start too late for it, then those that are idle, then one that others
    can spare. `min` hosts stay, and those that are locked."""
    work = _Work(now, pool, demand, measured)
    ready = [host for host in hosts if host.state is State.READY]
    starting = sorted((host for host in hosts if host.starting), key=lambda host: -host.created)
    spare = len(ready) + len(starting) - pool.min_hosts
    ended: list[Drain | Destroy] = []
    left = [*ready, *starting]
    for host in starting:
        others = [each for each in left if each is not host]
        instead = len(ready) == 1 and _pays(ready[0], host.price, work.startup)
        if len(ended) < spare and not host.locked and not instead and work.done_before(host, others):
            ended.append(Destroy(host.id, "the work will be done before it is ready"))
            left = others
    # The dearest first, of those idle for longest.
    for host in sorted((host for host in ready if not host.running), key=lambda host: (-host.price, host.busy)):
        others = [each for each in left if each is not host]
        reason = work.idle(host, others)
        if len(ended) < spare and not host.locked and reason:
            ended.append(Drain(host.id, reason))
            left = others
    settled = all(now - host.since >= SETTLED for host in ready) and not any(
        host.state is State.DRAINING for host in hosts
    )
    if not ended and settled and len(ready) >= 2 and spare > 0:
        ended += _spared(ready, work, spare)
    return ended


def cheaper(
    now: float,
    pool: Pool,
    demand: Sequence[Demand],
    host: Host,
    market: Market,
    without: Collection[str],
    measured: Measured,
) -> Offer | None:
    """The cheapest offer that can do the work of the only host, at a price that pays for its start. Only of a GPU that
    was measured is it known what it can do."""
    work = _Work(now, pool, demand, measured)
    fit = [
        offer
        for offer in ranked(pool, market.offers, measured, without)
        if _pays(host, offer.price, work.startup)
        and work.usual <= work.load * measured.tokens_per_second.get((pool.name, offer.gpu), 0.0)
    ]
    return min(fit, key=lambda offer: offer.price, default=None)


def _pays(host: Host, price: float, startup: float) -> bool:
    """Whether one at that price in place of the host pays for its start, and for the time in which both run."""
    return (host.price - price) * PAYBACK >= (startup + SETTLED) * price


def _spared(ready: Sequence[Host], work: _Work, spare: int) -> list[Drain]:
    """The dearest hosts that the rest could do without if no more came than of late, so that it is not a cheap one that
    goes first while less and less comes; they go once the rest can do what has come for ten minutes."""
    left = list(ready)
    drained: list[Drain] = []
    for host in sorted(ready, key=lambda host: (-host.price, host.running)):
        others = [each for each in left if each is not host]
        if len(drained) < spare and not host.locked and work.fits(others, work.lately):
            if not work.fits(others, work.arriving):
                break
            drained.append(Drain(host.id, f"{len(others)} of {len(left)} hosts can do what comes in"))
            left = others
    return drained


class _Work:
    """What there is to do at one moment, and whether some hosts are enough for it."""

    def __init__(self, now: float, pool: Pool, demand: Sequence[Demand], measured: Measured) -> None:
        self.now, self.pool, self.measured = now, pool, measured
        self.tokens = sum(each.tokens for each in demand)
        self.running = sum(each.running for each in demand)
        self.waits = any(each.waiting for each in demand)
        self.startup = startup(pool, measured)
        self.load = LOAD * (HURRIED + (1 - HURRIED) * leisure(pool))
        self.lately = sum(each.lately for each in demand)
        self.usual = sum(each.arriving for each in demand)
        # Less, of late, could be a pause; more is what hosts are rented for.
        self.arriving = max(self.usual, self.lately)

    def fits(self, hosts: Iterable[Host], arriving: float) -> bool:
        """Whether those of the hosts that are ready can do it, with room to spare."""
        ready = [host for host in hosts if host.state is State.READY]
        working = sum(rate(self.pool, host.gpu, self.measured) for host in ready)
        return (
            bool(ready)
            and arriving <= self.load * working
            and self.running <= self.load * self.pool.slots * len(ready)
            and self.tokens <= QUEUE * self.pool.target_wait * working
        )

    def done_before(self, host: Host, others: Sequence[Host]) -> bool:
        """Whether the work ends long before a host is ready: in half its time, so that a guess that was a little off
        changes nothing."""
        if not others:
            return not self.waits
        supplies = supply(self.now, self.pool, others, self.measured)
        if self.arriving > self.load * sum(each.rate for each in supplies):
            return False
        return emptied(self.tokens, supplies, self.arriving) < ready_in(self.now, self.pool, host, self.measured) / 2

    def idle(self, host: Host, others: Sequence[Host]) -> str:
        """Why an idle host may go; empty where it stays."""
        seconds = self.now - host.busy
        if seconds >= SURPLUS and self.fits(others, self.arriving):
            return f"idle for {seconds:.0f} seconds, and {len(others)} more can do what comes in"
        if not self.waits and seconds >= patience(self.pool, self.measured):
            return f"idle for {seconds / 60:.0f} minutes"
        return ""


def patience(pool: Pool, measured: Measured) -> float:
    """Seconds that the last host stays without work.

    Where the pool does not say: what would have been best over the last quiet spells, where a start counts for more
    than it costs, since tickets wait for it.
    """
    if pool.idle_minutes is not None:
        return pool.idle_minutes * 60
    spells = measured.quiet.get(pool.name, ())
    if len(spells) < KNOWN:
        return IDLE
    return _cheapest_stay(tuple(spells), startup(pool, measured))


@lru_cache(maxsize=64)
def _cheapest_stay(spells: tuple[float, ...], start: float) -> float:
    """Of the stays that make a difference; asked again and again for the same spells."""
    tried = sorted({IDLE, 0.0, *(each for each in spells if each <= IDLE)}, reverse=True)
    return min(tried, key=lambda stay: _without_work(spells, stay, start))


def _without_work(spells: Sequence[float], stay: float, start: float) -> float:
    """Seconds without work of a host that goes after `stay` seconds without a ticket. What comes while the next one
    starts waits for the same start."""
    seconds = starting = 0.0
    for each in spells:
        quiet = max(each - starting, 0.0)
        starting = max(starting - each, 0.0)
        if quiet > stay:
            seconds, starting = seconds + stay + START * start, start
        else:
            seconds += quiet
    return seconds
