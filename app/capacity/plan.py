"""What the policy is told and what it answers: values without behaviour, I/O or clock.

Times are seconds since the epoch by the database's clock, spans are seconds, prices dollars an hour, amounts dollars.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from nvidia_triton.providers.base import Offer, Removed


class State(StrEnum):
    """A host's life. It bills from `creating` until it is `gone`, or `failed` once nothing of it is left."""

    WANTED = "wanted"
    CREATING = "creating"
    BOOTING = "booting"
    DEPLOYING = "deploying"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DESTROYING = "destroying"
    GONE = "gone"
    FAILED = "failed"


STARTING = frozenset({State.WANTED, State.CREATING, State.BOOTING, State.DEPLOYING, State.LOADING})
ENDED = frozenset({State.GONE, State.FAILED})


@dataclass(frozen=True)
class Budget:
    """Dollars in the running hour, day and month (UTC), and in all; None is no limit."""

    hour: float | None = None
    day: float | None = None
    month: float | None = None
    total: float | None = None


@dataclass(frozen=True)
class Pool:
    """Hosts of one kind for some models.

    `target_wait`: seconds a ticket may wait for a host. `idle_minutes`: minutes without work before a host is drained;
    None is as many as would have been cheapest of late, ten at the most.
    `boot_deadline`: seconds from the create to `ready`, after which a host is given up. `max_price`: dollars an hour of
    one host. `vram`: GB that the models need on each GPU. `slots`: tickets that one host runs at once.
    `tokens_per_second`: of a busy host, and `startup`: seconds from the create to `ready`, until they are measured.
    """

    name: str
    models: tuple[str, ...]
    provider: str = "vast"
    min_hosts: int = 0
    max_hosts: int = 1
    target_wait: float = 60.0
    idle_minutes: float | None = None
    boot_deadline: float = 2700.0
    max_price: float = 0.8
    budget: Budget = Budget()
    interruptible: bool = False
    vram: float = 0.0
    slots: int = 16
    tokens_per_second: float = 1000.0
    startup: float = 600.0


@dataclass(frozen=True)
class Deadline:
    """Tickets that expire in `seconds`: `tokens` are theirs, and those of all that the claim takes before them."""

    seconds: float
    tokens: float


@dataclass(frozen=True)
class Demand:
    """What is asked of one model. Tokens are those expected from the model's own history.

    `waiting`: tickets that no host runs; `tokens`: theirs in all. `oldest`: seconds that the oldest of them has
    waited. `running`: tickets in a slot. `arriving`: tokens a second that came in over the last ten minutes; `lately`:
    that go on coming, by the last half minute (forecast.sustained).
    """

    model: str
    waiting: int = 0
    tokens: float = 0.0
    oldest: float = 0.0
    running: int = 0
    deadlines: tuple[Deadline, ...] = ()
    arriving: float = 0.0
    lately: float = 0.0


@dataclass(frozen=True)
class Host:
    """One host as the ledger has it.

    `machine`: the provider's machine, by which failures are remembered. `created`: since when it bills. `since`: when
    it took its state. `progress`: last sign that it gets on. `busy`: when its last claim was settled, or when it became
    ready. `running`: claims that are live. `passed_over`: seconds in which tickets waited and it had none. `locked`:
    not ended for want of work. `in_doubt`: nobody knows whether it exists; it counts at its full price. `interrupted`:
    its provider took it away. `leaving`: somebody asked for its end, so it is not taken back into service.
    """

    id: str
    pool: str
    state: State
    machine: str
    gpu: str
    price: float
    created: float
    since: float
    progress: float
    busy: float
    running: int = 0
    passed_over: float = 0.0
    locked: bool = False
    in_doubt: bool = False
    interrupted: bool = False
    leaving: bool = False

    @property
    def starting(self) -> bool:
        return self.state in STARTING

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Market:
    """A provider's answer for one pool: offers, or what removes them.

    `error`: why it could not be asked; `refusal`: why it made no host.
    """

    offers: tuple[Offer, ...] = ()
    removed: tuple[Removed, ...] = ()
    error: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class Amounts:
    """Dollars spent in the running hour, day and month (UTC), and in all; hosts in doubt at full price."""

    hour: float = 0.0
    day: float = 0.0
    month: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Spent:
    """By pool, and over all of them, hosts that are gone included."""

    pools: Mapping[str, Amounts] = field(default_factory=dict)
    all: Amounts = Amounts()


@dataclass(frozen=True)
class Failure:
    """A host that failed: `step` is the state it failed in, `at` when. A week of them is remembered.

    `machine` is empty where it is unknown or not to blame.
    """

    pool: str
    machine: str
    at: float
    step: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """What was seen before. `tokens_per_second`: of a busy host by (pool, GPU); `startup`: seconds from the create to
    `ready` by pool; `quiet`: seconds of the last spells of a minute or more in which a pool was not asked for anything,
    the latest last.
    """

    tokens_per_second: Mapping[tuple[str, str], float] = field(default_factory=dict)
    startup: Mapping[str, float] = field(default_factory=dict)
    quiet: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rent:
    pool: str
    offer: Offer
    reason: str


@dataclass(frozen=True)
class Drain:
    """The host gets no more tickets and finishes those it has; once it has none, a Destroy follows."""

    host: str
    reason: str


@dataclass(frozen=True)
class Undrain:
    """The host is needed after all."""

    host: str
    reason: str


@dataclass(frozen=True)
class Destroy:
    """`failed`: the host goes to `failed` and its machine is avoided for a while."""

    host: str
    reason: str
    failed: bool = False


Action = Rent | Drain | Undrain | Destroy


class WaitReason(StrEnum):
    """Why tickets of a model wait. `hosts_fail`: so many failed that the next one is put off; `not_yet`: `target_wait`
    and the tickets' deadlines leave time to gather more work before one is rented."""

    BUDGET = "budget"
    NO_OFFER = "no_offer"
    HOST_STARTING = "host_starting"
    MAX_HOSTS = "max_hosts"
    HOSTS_BUSY = "hosts_busy"
    HOSTS_FAIL = "hosts_fail"
    NOT_YET = "not_yet"


@dataclass(frozen=True)
class Waiting:
    """`message`: a sentence for who asks. `host`, `step`, `ready_at`: the host that is starting."""

    model: str
    reason: WaitReason
    message: str
    host: str = ""
    step: str = ""
    ready_at: float | None = None


@dataclass(frozen=True)
class Plan:
    """`ask`: pools that want a host and whose offers are not known: ask the provider, then decide again."""

    actions: tuple[Action, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    ask: tuple[str, ...] = ()
