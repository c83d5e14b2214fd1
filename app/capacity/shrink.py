"""Which hosts are no longer needed."""

from collections.abc import Sequence
from math import ceil

from app.capacity.forecast import Supply, emptied, rate, ready_in, startup, supply
from app.capacity.plan import Demand, Destroy, Drain, Host, Measured, Pool, State

# Beside others that can do the work, a host goes after this many seconds without any.
SURPLUS = 120.0
# Hosts are kept while the work takes this part of what they can do; one fewer would do more than it.
LOAD = 0.7
# A host that is about to be needed stays idle for this many times `idle_minutes` at most.
PATIENCE = 2.0


def fewer(
    now: float, pool: Pool, demand: Sequence[Demand], hosts: Sequence[Host], measured: Measured
) -> list[Drain | Destroy]:
    """Hosts to end for want of work: those that start too late for it, then those that are idle, then one that others
    can spare. `min` hosts stay, and those that are locked."""
    ready = [host for host in hosts if host.state is State.READY]
    starting = sorted((host for host in hosts if host.starting), key=lambda host: -host.created)
    spare = len(ready) + len(starting) - pool.min_hosts
    ended: list[Drain | Destroy] = []
    for host in starting:
        if len(ended) < spare and not host.locked and _too_late(now, pool, demand, host, hosts, measured):
            reason = "the work will be done before it is ready"
            ended.append(Destroy(host.id, reason))
    if any(each.waiting for each in demand):
        return ended
    # The dearest first, of those idle for longest.
    idle = sorted((host for host in ready if not host.running), key=lambda host: (-host.price, host.busy))
    left = len(ready)
    for host in idle:
        reason = _idle(now, pool, demand, host, left, measured)
        if len(ended) < spare and not host.locked and reason:
            ended.append(Drain(host.id, reason))
            left -= 1
    draining = any(host.state is State.DRAINING for host in hosts)
    if not ended and not draining and spare > 0:
        ended += _spared(now, pool, demand, ready, measured)
    return ended


def _too_late(
    now: float, pool: Pool, demand: Sequence[Demand], host: Host, hosts: Sequence[Host], measured: Measured
) -> bool:
    """Whether the work ends long before the host is ready: half its time, so that a guess that was a little off
    changes nothing."""
    others = supply(now, pool, [each for each in hosts if each is not host], measured)
    tokens, arriving = sum(each.tokens for each in demand), sum(each.arriving for each in demand)
    if not others:
        return not any(each.waiting for each in demand) and arriving == 0
    return emptied(tokens, others, arriving) < ready_in(now, pool, host, measured) / 2


def _idle(now: float, pool: Pool, demand: Sequence[Demand], host: Host, ready: int, measured: Measured) -> str:
    """Why an idle host may go; empty where it stays."""
    seconds, limit = now - host.busy, pool.idle_minutes * 60
    if ready > max(1, pool.min_hosts) and seconds >= min(SURPLUS, limit):
        needed = sum(each.arriving for each in demand) / LOAD
        if needed <= (ready - 1) * rate(pool, host.gpu, measured):
            return f"idle for {seconds / 60:.0f} minutes, and {ready - 1} more can do what comes in"
    if seconds < limit:
        return ""
    gaps = [each.gap for each in demand if each.gap is not None]
    if gaps and min(gaps) < startup(pool, measured) and seconds < PATIENCE * limit:
        return ""
    return f"idle for {seconds / 60:.0f} minutes"


def _spared(now: float, pool: Pool, demand: Sequence[Demand], ready: Sequence[Host], measured: Measured) -> list[Drain]:
    """One host whose work the others can do besides their own."""
    if len(ready) < 2 or any(now - host.since < pool.idle_minutes * 60 for host in ready):
        return []
    supplies = [Supply(0.0, rate(pool, host.gpu, measured)) for host in ready]
    running, arriving = sum(host.running for host in ready), sum(each.arriving for each in demand)
    needed = max(ceil(running / (LOAD * pool.slots)), ceil(arriving / (LOAD * min(each.rate for each in supplies))), 1)
    if needed >= len(ready):
        return []
    movable = [host for host in ready if not host.locked]
    if not movable:
        return []
    host = min(movable, key=lambda host: (host.running, -host.price))
    return [Drain(host.id, f"{needed} of {len(ready)} hosts can do what comes in")]
