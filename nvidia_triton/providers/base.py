"""What a provider of hosts is: four calls, the words they use and the ways they fail.

    provider = open_provider("vast", {}, settings)
    offers = await provider.offers(definition.offer_query(max_price=0.80))
    ident = await provider.create(offers[0], "triton-tickets-pool-1a2b3c4d", definition)
    hosts = await provider.list("triton-tickets-", known=[ident])
    await provider.destroy(ident)

Every call may be cancelled. A cancelled `create` is as one whose answer was lost: look for the label.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, Self

from nvidia_triton.vast.query import Query as Query

if TYPE_CHECKING:
    from nvidia_triton.vast.definition import InstanceDefinition
    from nvidia_triton.vast.settings import VastSettings

HostState = Literal["starting", "running", "stopped", "failed"]
Step = Literal["ssh", "preflight", "start triton", "rsync", "load model"]
# In the order in which a deployment takes them.
STEPS: tuple[Step, ...] = ("ssh", "preflight", "start triton", "rsync", "load model")


class ProviderError(Exception):
    """What went wrong and what to do about it, in a sentence without secrets."""


class OfferGone(ProviderError):
    """Somebody else has taken the offer. Nothing was made."""


class Refused(ProviderError):
    """The provider understood and said no: a wrong key, no credit, a setting it does not accept. Nothing was made."""


class Unavailable(ProviderError):
    """The provider does not answer, or asks for fewer calls. Nothing was made; it may work later."""


class Doubtful(ProviderError):
    """The answer to a create was lost, so a host may exist: `list` shows it by its label, at once or a little later."""


@dataclass(frozen=True)
class Removed:
    """A condition of the query, and how many of the market's offers it removes by itself."""

    condition: str
    text: str
    count: int


class NoOffer(ProviderError):
    """Nothing fits; `removed` says which condition removes how many. Empty where the market has no offer at all."""

    def __init__(self, message: str, removed: Sequence[Removed] = ()) -> None:
        super().__init__(message)
        self.removed = tuple(removed)


class DeployFailed(ProviderError):
    """`of_model` is set where the model is to blame, so that another machine would fail as well."""

    def __init__(self, step: Step, message: str, *, of_model: str | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.of_model = of_model


@dataclass(frozen=True)
class Offer:
    """A host that could be had. `price` is dollars an hour with storage; `storage_price` is what it costs stopped.

    `machine` is the same for every offer of one physical machine.
    """

    id: str
    machine: str
    gpu: str
    gpus: int
    vram_gb: float
    price: float
    storage_price: float
    driver: str = ""
    cuda: str = ""
    region: str = ""
    interruptible: bool = False


@dataclass(frozen=True)
class Address:
    """Where SSH answers: `routes` (host and port) in the order to try them. The host key is kept under `name`."""

    name: str
    routes: tuple[tuple[str, int], ...]
    user: str = "root"


@dataclass(frozen=True)
class Rented:
    """A host that exists. `price` is what an hour costs as it is now: a stopped one still costs its storage.

    `running` means that the provider says so, not that SSH answers. `detail` is the provider's own word on the state.
    `interrupted` is set on an interruptible host that was taken away; it is `stopped` then.
    """

    id: str
    label: str
    state: HostState
    detail: str
    machine: str
    price: float
    address: Address | None = None
    gpu: str = ""
    gpus: int = 0
    interrupted: bool = False
    # Unix seconds by the provider's clock.
    started_at: float | None = None


class Provider(Protocol):
    """A market or a set of machines. Reads may be repeated; `create` is sent once, whatever happens."""

    name: str
    # Whether a host that was ended here goes on costing its storage, because it is only stopped.
    keeps_storage: bool

    async def offers(self, query: Query) -> Sequence[Offer]:
        """Offers that fit, the cheapest first.

        Raises:
            NoOffer: nothing fits.
            Refused, Unavailable: the market was not seen.
        """

    async def create(self, offer: Offer, label: str, definition: InstanceDefinition) -> str:
        """Rents a host with this label and returns its id; it is not ready yet.

        Raises:
            OfferGone, Refused, Unavailable: nothing was made.
            Doubtful: it may have been.
        """

    async def list(self, label_prefix: str, known: Collection[str] = ()) -> Sequence[Rented]:
        """Every host whose label begins so, and of `known` every one that exists.

        Ids in `known` that the provider's list leaves out are asked for one by one, since a list may lag. One that is
        absent from the answer is gone by both accounts.

        Raises:
            Refused, Unavailable: nothing is known, least of all that hosts are gone.
        """

    async def destroy(self, ident: str) -> None:
        """Asks for the end of a host; fine where it is gone. Only `list` tells whether it went.

        Raises:
            Refused, Unavailable: it still exists, as far as anybody knows.
        """

    async def close(self) -> None:
        """Lets go of connections and threads."""


@dataclass(frozen=True)
class Progress:
    """How a deployment goes. A stall is a `Progress` that does not come: it is only sent when something moved."""

    step: Step
    text: str
    percent: float | None = None
    bytes: int | None = None
    at: float = field(default_factory=time.time)


class Deploy(Protocol):
    """`nvidia_triton.providers.deploy.deploy`."""

    async def __call__(
        self,
        address: Address,
        definition: InstanceDefinition,
        models: Sequence[str],
        progress: Callable[[Progress], None],
        *,
        settings: VastSettings,
    ) -> None:
        """Takes a host on which SSH answers, or soon will, to one that serves `models`.

        Each step does only what is not done yet, so a second call goes on where one ended. Cancelled, it ends its ssh
        and rsync before it returns. `progress` is called in the event loop.

        Raises:
            DeployFailed: with the step.
        """


class Tunnel(Protocol):
    """`nvidia_triton.providers.tunnel.Tunnel`: local ports that lead to a host's Triton while it is open.

    It reconnects by itself, to `address` as that is by then; assign a new one where the host has moved.
    """

    address: Address
    grpc_port: int
    http_port: int

    async def __aenter__(self) -> Self:
        """`start`, and `stop` at the end of the block."""

    async def __aexit__(self, *error: object) -> None: ...

    async def start(self) -> None:
        """Returns once the forwards stand.

        Raises:
            DeployFailed: SSH failed, in the step `ssh`.
        """

    async def healthy(self) -> bool:
        """Whether Triton answers through it now."""

    @property
    def problem(self) -> str:
        """Why it does not stand; empty while it does."""

    async def stop(self) -> None:
        """Ends ssh; fine where it has ended."""
