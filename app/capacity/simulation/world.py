"""Simulated time: tickets come and are run, hosts start, work, fail and end, and whatever bills is written down.

What is simplified: a ticket runs at its host's tokens a second over its slots, however many run beside it; a free slot
takes the first ticket at once, all being one owner's; a decision is made every `every` seconds and carried out without
delay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from app.capacity.forecast import sustained
from app.capacity.plan import (
    Action,
    Budget,
    Deadline,
    Demand,
    Destroy,
    Drain,
    Failure,
    Host,
    Market,
    Measured,
    Rent,
    Spent,
    State,
    Undrain,
)
from app.capacity.simulation.host import SimulatedHost
from app.capacity.simulation.ledger import Ledger
from app.capacity.simulation.market import Machines
from app.capacity.simulation.traces import DAY, Trace

# A Tuesday in the middle of a month, UTC.
START = 1_794_873_600.0
EVERY = 10.0
ARRIVED_SECONDS = 600.0
LATELY_SECONDS = 15.0
QUIET_SECONDS = 60.0
# As PRIORITY_AGEING_SECONDS: a ticket that expires sooner counts as if it had come so much earlier.
AGEING_SECONDS = 60.0
LEAST_FULL_SECONDS = 60.0
SPELLS = 50
# So long after a trace has ended what it asked for may still be worked off.
AFTER = DAY


@dataclass(frozen=True)
class View:
    """What a controller is told. `over`: no ticket will come any more, and none is left."""

    now: float
    demand: dict[str, Demand]
    hosts: Sequence[Host]
    market: Market
    spent: Spent
    failures: Sequence[Failure]
    measured: Measured
    over: bool


Controller = Callable[[View], Sequence[Action]]


@dataclass(frozen=True)
class Sample:
    """One moment. `working`: hosts that run something."""

    at: float
    waiting: int
    hosts: int
    ready: int
    working: int
    dollars: float


@dataclass
class Run:
    """What came of a trace; seconds are those of hosts, in the sum."""

    waits: list[float]
    samples: list[Sample]
    dollars: float = 0.0
    billed: float = 0.0
    without_work: float = 0.0
    idle_while_waiting: float = 0.0
    rented: int = 0
    failed: int = 0
    left: int = 0
    expired: int = 0


class World:
    """One pool, and what comes for it.

    `watch` is called with the view and the actions of each decision, before they are carried out. `together` has what
    the hosts of all pools cost, where there are worlds beside this one.
    """

    def __init__(
        self,
        trace: Trace,
        seed: int,
        every: float = EVERY,
        budget: Budget | None = None,
        watch: Callable[[View, Sequence[Action]], None] | None = None,
        machines: Machines | None = None,
        begin: float = 0.0,
        after: float = AFTER,
        together: Ledger | None = None,
    ) -> None:
        self.trace, self.pool, self._every, self._watch = trace, trace.pool, every, watch
        self.machines = machines or Machines(trace.pool, seed, trace.closed)
        self._begin, self._after = begin, after
        self.ledger = Ledger(START + begin)
        self.together = together or self.ledger
        self._ledgers = {self.ledger, self.together}
        self.budget = budget or Budget()
        self.hosts: dict[str, SimulatedHost] = {}
        self.queue: deque[int] = deque()
        self.now = 0.0
        self._times = {
            model: [each.at for each in trace.arrivals if each.model == model] for model in trace.pool.models
        }
        self._next = 0
        self._expiring = trace.expiring
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._failures: list[Failure] = []
        self._started: list[float] = []
        self._worked: dict[str, list[float]] = {}
        self._done: Counter[str] = Counter()
        self._done_tokens: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._quiet: deque[float] = deque(maxlen=SPELLS)
        self._first: dict[int, float] = {}
        self.run_ = Run([], [])

    def run(self, controller: Controller) -> Run:
        run, at = self.run_, self._begin
        while at < self.trace.seconds + self._after:
            view = self.look(at)
            if view.over and not self.hosts:
                break
            self.act(view, controller(view))
            at += self._every
        run.dollars = self.ledger.total
        run.left = len(self.queue) + sum(len(host.running) for host in self.hosts.values())
        for number in self.queue:
            self._first.setdefault(number, self.now)
        arrivals = self.trace.arrivals
        run.waits = [at - arrivals[number].at for number, at in self._first.items()]
        return run

    def look(self, at: float) -> View:
        """Lets happen what does until then; a moment is `every` seconds after the one before."""
        self._until(at)
        return self._view()

    def act(self, view: View, actions: Sequence[Action]) -> None:
        """Carries out what was decided on the view."""
        if self._watch is not None:
            self._watch(view, actions)
        for action in actions:
            self._carry_out(action)
        self._assign()
        self._sample(self.run_)

    def _until(self, at: float) -> None:
        """Everything that happens up to that moment."""
        arrivals = self.trace.arrivals
        while True:
            event = self._events[0][0] if self._events else at + 1
            arrival = arrivals[self._next].at if self._next < len(arrivals) else at + 1
            if min(event, arrival) > at:
                break
            if arrival <= event:
                self.now = arrival
                if self._next and arrival - arrivals[self._next - 1].at >= QUIET_SECONDS:
                    self._quiet.append(arrival - arrivals[self._next - 1].at)
                self._enqueue(self._next)
                self._waiting[arrivals[self._next].model] += 1
                self._next += 1
            else:
                self.now, _, happens = heappop(self._events)
                happens()
            self._assign()
        self.now = at
        for host in list(self.hosts.values()):
            host.step(at)
            host.look(at)
        self._advance()

    def _advance(self) -> None:
        for each in self._ledgers:
            each.advance(START + self.now)

    def _enqueue(self, number: int) -> None:
        """Where the claim comes to it."""
        if not self.queue or self._rank(number) > self._rank(self.queue[-1]):
            self.queue.append(number)
        else:
            self.queue.insert(bisect_left(self.queue, self._rank(number), key=self._rank), number)

    def _rank(self, number: int) -> tuple[float, int]:
        ticket = self.trace.arrivals[number]
        sooner = AGEING_SECONDS - ticket.expires_in if ticket.expires_in is not None else 0.0
        return ticket.at - max(sooner, 0.0), number

    def _assign(self) -> None:
        arrivals = self.trace.arrivals
        while self.queue:
            host = max(self.hosts.values(), key=lambda host: host.free, default=None)
            if host is None or host.free <= 0:
                return
            number = self.queue.popleft()
            ticket = arrivals[number]
            self._waiting[ticket.model] -= 1
            if ticket.expires_in is not None and self.now > ticket.at + ticket.expires_in:
                self.run_.expired += 1
                continue
            self._first.setdefault(number, self.now)
            self._running[ticket.model] += 1
            host.running.add(number)
            self._at(ticket.tokens / host.speed, lambda host=host, number=number: self._settle(host, number))  # type: ignore[misc]

    def _settle(self, host: SimulatedHost, number: int) -> None:
        if number not in host.running or host.id not in self.hosts:
            return
        ticket = self.trace.arrivals[number]
        host.settle(number, ticket.tokens, self.now)
        self._running[ticket.model] -= 1
        self._done[ticket.model] += 1
        self._done_tokens[ticket.model] += ticket.tokens  # type: ignore[assignment]

    def _at(self, seconds: float, happens: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._events, (self.now + seconds, self._number, happens))

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Rent):
            self._rent(action)
            return
        host = self.hosts[action.host]
        if isinstance(action, Destroy):
            self._end(host, action.reason, failed=action.failed)
        elif isinstance(action, Drain) and host.state is State.READY:
            host.become(State.DRAINING, self.now)
        elif isinstance(action, Undrain) and host.state is State.DRAINING:
            host.become(State.READY, self.now)

    def _rent(self, rent: Rent) -> None:
        fate = self.machines.fate(rent.offer.machine)
        self._number += 1
        rate = self.pool.tokens_per_second * self.machines.machines[rent.offer.machine].speed
        host = SimulatedHost(
            f"{self.pool.name}-{self._number}", self.pool.name, rent.offer, fate, self.pool.slots, rate, self.now
        )
        self.hosts[host.id] = host
        for each in self._ledgers:
            each.begin(host.id, rent.offer.price)
        self.run_.rented += 1
        if fate.stuck is None:
            self._at(fate.startup, lambda: self._ready(host))
            self._at(fate.startup + fate.life, lambda: self._end(host, "it no longer answers", failed=True))
        elif fate.broken:
            self._at(fate.stuck * fate.startup, lambda: self._end(host, "it does not start", failed=True))

    def _ready(self, host: SimulatedHost) -> None:
        if host.starting:
            host.become(State.READY, self.now)
            self._started.append(self.now - host.created)

    def _end(self, host: SimulatedHost, reason: str, *, failed: bool) -> None:
        if host.ends_at is not None or host.id not in self.hosts:
            return
        if failed:
            self.run_.failed += 1
            self._failures.append(Failure(host.pool, host.offer.machine, START + self.now, str(host.state), reason))
        _add(self._worked, host)
        # What ran there runs again elsewhere, before what came later.
        for number in sorted(host.running, reverse=True):
            self._enqueue(number)
            model = self.trace.arrivals[number].model
            self._running[model] -= 1
            self._waiting[model] += 1
        host.running.clear()
        host.ends_at = self.now + host.fate.ending
        host.become(State.DESTROYING, self.now)
        self._at(host.fate.ending, lambda: self._gone(host))

    def _gone(self, host: SimulatedHost) -> None:
        self._advance()
        for each in self._ledgers:
            each.end(host.id)
        del self.hosts[host.id]

    def _view(self) -> View:
        now = START + self.now
        taken = {host.offer.machine for host in self.hosts.values()}
        return View(
            now=now,
            demand={model: self._demand(model) for model in self.pool.models},
            hosts=[host.seen(self.now, START) for host in self.hosts.values()],
            market=self.machines.offered(self.now, taken),
            spent=Spent({self.pool.name: self.ledger.amounts()}, self.together.amounts()),
            failures=self._failures,
            measured=self._measured(),
            over=self.now >= self.trace.seconds
            and not self.queue
            and not any(host.running for host in self.hosts.values()),
        )

    def _demand(self, model: str) -> Demand:
        times, now = self._times[model], self.now
        until = bisect_left(times, now)
        arrived = until - bisect_left(times, now - ARRIVED_SECONDS)
        last = bisect_left(times, now - LATELY_SECONDS)
        lately = sustained(until - last, last - bisect_left(times, now - 2 * LATELY_SECONDS))
        usual = self._done_tokens[model] / self._done[model] if self._done[model] else 300.0
        oldest, deadlines = 0.0, list[Deadline]()
        if self._waiting[model]:
            arrivals = self.trace.arrivals
            waiting = (arrivals[each].at for each in self.queue if arrivals[each].model == model)
            oldest = now - (min(waiting) if self._expiring else next(waiting))
            if self._expiring:
                deadlines = self._deadlines(model, usual)
        return Demand(
            model,
            waiting=self._waiting[model],
            tokens=self._waiting[model] * usual,
            oldest=oldest,
            running=self._running[model],
            deadlines=tuple(deadlines),
            arriving=arrived * usual / ARRIVED_SECONDS,
            lately=lately * usual / LATELY_SECONDS,
        )

    def _deadlines(self, model: str, usual: float) -> list[Deadline]:
        """In steps of ten seconds."""
        places: dict[float, int] = {}
        queued = [each for each in map(self.trace.arrivals.__getitem__, self.queue) if each.model == model]
        for place, each in enumerate(queued, 1):
            if each.expires_in is not None:
                places[(each.at + each.expires_in) // 10 * 10] = place
        return [Deadline(max(at - self.now, 0.0), place * usual) for at, place in sorted(places.items())]

    def _measured(self) -> Measured:
        worked = {gpu: list(each) for gpu, each in self._worked.items()}
        for host in self.hosts.values():
            if host.ends_at is None:
                _add(worked, host)
        name = self.pool.name
        return Measured(
            {(name, gpu): done / full for gpu, (done, full) in worked.items() if done and full > LEAST_FULL_SECONDS},
            {name: sum(self._started) / len(self._started)} if self._started else {},
            {name: tuple(self._quiet)},
        )

    def _sample(self, run: Run) -> None:
        billing = len(self.hosts)
        working = sum(bool(host.running) for host in self.hosts.values())
        run.billed += billing * self._every
        run.without_work += (billing - working) * self._every
        if self.queue:
            idle = sum(not host.running and host.state in (State.READY, State.DRAINING) for host in self.hosts.values())
            run.idle_while_waiting += idle * self._every
        ready = sum(host.state is State.READY for host in self.hosts.values())
        if not run.samples or self.now - run.samples[-1].at >= 60:
            run.samples.append(Sample(self.now, len(self.queue), billing, ready, working, self.ledger.total))


def _add(worked: dict[str, list[float]], host: SimulatedHost) -> None:
    each = worked.setdefault(host.offer.gpu, [0.0, 0.0])
    each[0], each[1] = each[0] + host.full_tokens, each[1] + host.full_seconds
