"""Why tickets wait, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.capacity.plan import Demand, Host, Pool, Waiting, WaitReason


@dataclass(frozen=True)
class Blocked:
    """What keeps a pool from renting."""

    reason: WaitReason
    message: str


def waiting(
    pool: Pool,
    demand: Sequence[Demand],
    starting: Sequence[tuple[Host, float]],
    blocked: Blocked | None,
    renting_ready_at: float | None,
) -> tuple[Waiting, ...]:
    """One for each model with tickets that wait. `starting`: hosts with the time they should be ready at;
    `renting_ready_at`: the same of one that is about to be rented."""
    return tuple(_why(pool, each.model, starting, blocked, renting_ready_at) for each in demand if each.waiting)


def _why(
    pool: Pool,
    model: str,
    starting: Sequence[tuple[Host, float]],
    blocked: Blocked | None,
    renting_ready_at: float | None,
) -> Waiting:
    if starting:
        host, ready_at = min(starting, key=lambda each: each[1])
        message = f"A host of pool {pool.name} is starting ({host.state}, {host.gpu})."
        return Waiting(model, WaitReason.HOST_STARTING, message, host.id, str(host.state), ready_at)
    if renting_ready_at is not None:
        message = f"A host of pool {pool.name} is being rented."
        return Waiting(model, WaitReason.HOST_STARTING, message, step="wanted", ready_at=renting_ready_at)
    if blocked is not None:
        return Waiting(model, blocked.reason, _sentence(blocked.message))
    return Waiting(model, WaitReason.HOSTS_BUSY, f"The hosts of pool {pool.name} are busy; its turn comes.")


def minutes_in_words(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def hosts_in_words(count: int) -> str:
    return f"{count} host{'' if count == 1 else 's'}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?")) else ".")
