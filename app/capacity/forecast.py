"""How a queue will drain: work as a fluid that hosts take off at their rate from the moment they are ready."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, sqrt

from app.capacity.plan import Host, Measured, Pool, State

# A host that takes longer than expected is expected to be ready this soon, in seconds.
LATE = 30.0
MINUTE = 60.0


@dataclass(frozen=True)
class Supply:
    """A host that does `rate` tokens a second from `ready_in` seconds on."""

    ready_in: float
    rate: float


def rate(pool: Pool, gpu: str, measured: Measured) -> float:
    """Tokens a second of a busy host with that GPU."""
    return measured.tokens_per_second.get((pool.name, gpu)) or pool.tokens_per_second


def leisure(pool: Pool) -> float:
    """From 0 to 1: below 1 where `target_wait` is below a minute, so hosts are paid for that work for less."""
    return min(pool.target_wait / MINUTE, 1.0)


def startup(pool: Pool, measured: Measured) -> float:
    """Seconds from the create of a host to its first ticket."""
    return measured.startup.get(pool.name) or pool.startup


def sustained(last: int, before: int) -> float:
    """Tickets of a span that go on coming, by those of the last one and of the one before: the fewer of them, so that a
    burst which has ended does not count, less what chance may have added."""
    fewer = min(last, before)
    return fewer - sqrt(fewer)


def supply(now: float, pool: Pool, hosts: Iterable[Host], measured: Measured) -> list[Supply]:
    """What `hosts` can do; those on their way out give nothing."""
    return [
        Supply(ready_in(now, pool, host, measured), rate(pool, host.gpu, measured))
        for host in hosts
        if host.starting or host.state is State.READY
    ]


def ready_in(now: float, pool: Pool, host: Host, measured: Measured) -> float:
    """Seconds until a host is ready."""
    if host.state is State.READY:
        return 0.0
    return max(startup(pool, measured) - (now - host.created), LATE)


def backlog(seconds: float, tokens: float, hosts: Sequence[Supply], arriving: float = 0.0) -> float:
    """Tokens that wait in so many seconds, while `arriving` tokens a second come in."""
    left, since = tokens, 0.0
    for until in sorted({min(host.ready_in, seconds) for host in hosts} | {seconds}):
        working = sum(host.rate for host in hosts if host.ready_in <= since)
        left = max(0.0, left + (arriving - working) * (until - since))
        since = until
    return left


def emptied(tokens: float, hosts: Sequence[Supply], arriving: float = 0.0) -> float:
    """Seconds until nothing waits; infinite where that never comes."""
    left, since, working = tokens, 0.0, 0.0
    for host in sorted(hosts, key=lambda host: host.ready_in):
        span, net = host.ready_in - since, working - arriving
        if net > 0 and left <= net * span:
            return since + left / net
        left, since, working = max(0.0, left - net * span), host.ready_in, working + host.rate
    if left <= 0:
        return since
    return since + left / (working - arriving) if working > arriving else inf
