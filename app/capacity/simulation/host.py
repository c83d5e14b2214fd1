"""One host of the simulation: how it starts, works and ends, and how the ledger would have it."""

from __future__ import annotations

from app.capacity.plan import Host, State
from app.capacity.simulation.market import Fate
from nvidia_triton.providers.base import Offer

# Parts of a start, by their end.
STEPS = ((0.02, State.CREATING), (0.5, State.BOOTING), (0.75, State.DEPLOYING), (1.0, State.LOADING))
# A healthy host says something at least this often, in seconds.
SAYS = 30.0
# With this part of its slots taken, what it does is what it can do.
FULL = 0.9


class SimulatedHost:
    def __init__(self, id_: str, pool: str, offer: Offer, fate: Fate, slots: int, rate: float, now: float) -> None:
        self.id, self.pool, self.offer, self.fate, self.slots = id_, pool, offer, fate, slots
        # Tokens a second of one slot.
        self.speed = rate / slots
        self.created = self.since = self.busy = now
        self.state = State.CREATING if fate.doubtful else State.WANTED
        self.ready_at: float | None = None
        self.ends_at: float | None = None
        self.locked = self.failed = False
        self.running: set[int] = set()
        # Tokens, and those that were done in the seconds in which most slots were taken.
        self.tokens = self.full_tokens = self.full_seconds = 0.0
        self._full: tuple[float, float] | None = None

    @property
    def free(self) -> int:
        return self.slots - len(self.running) if self.state is State.READY else 0

    def step(self, now: float) -> None:
        """Where it is in its start by now; it becomes ready by an event of its own."""
        if self.starting and now - self.created > self.fate.doubtful:
            part = (now - self.created) / self.fate.startup
            if self.fate.stuck is not None:
                part = min(part, self.fate.stuck)
            begun = 0.0
            for until, state in STEPS:
                if part < until or until == 1.0:
                    if state is not self.state:
                        self.state, self.since = state, self.created + begun * self.fate.startup
                    break
                begun = until

    @property
    def starting(self) -> bool:
        return self.ready_at is None and self.ends_at is None

    def seen(self, now: float, epoch: float) -> Host:
        """As the policy is told of it; the simulation's time begins at `epoch`."""
        return Host(
            id=self.id,
            pool=self.pool,
            state=self.state,
            machine=self.offer.machine,
            gpu=self.offer.gpu,
            price=self.offer.price,
            created=epoch + self.created,
            since=epoch + self.since,
            progress=epoch + self._progress(now),
            busy=epoch + (now if self.running else self.busy),
            running=len(self.running),
            locked=self.locked,
            in_doubt=self.state is State.CREATING and now - self.created <= self.fate.doubtful,
        )

    def become(self, state: State, now: float) -> None:
        self.state, self.since = state, now
        if state is State.READY and self.ready_at is None:
            self.ready_at = self.busy = now

    def settle(self, ticket: int, tokens: float, now: float) -> None:
        self.running.remove(ticket)
        self.tokens += tokens
        self.busy = now

    def look(self, now: float) -> None:
        """Counts what it did since the last look, where it was full then and is now."""
        if len(self.running) < FULL * self.slots:
            self._full = None
            return
        if self._full is not None:
            self.full_seconds += now - self._full[0]
            self.full_tokens += self.tokens - self._full[1]
        self._full = (now, self.tokens)

    def _progress(self, now: float) -> float:
        if not self.starting:
            # Nothing is written down of a host that serves or goes.
            return self.since
        if self.fate.stuck is not None:
            return min(now, self.created + self.fate.stuck * self.fate.startup)
        return max(self.since, now - now % SAYS)
