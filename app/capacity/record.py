"""What the steps of one host's life have in common: its row, its means, and what the provider says of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.capacity.listings import Listing, Listings
from app.errors import DatabaseUnavailable
from app.queue.hosts import HostStore, LeadersHosts
from app.telemetry import logger
from nvidia_triton.providers.base import Address, Progress, Provider, Rented, Tunnel

log = logger("capacity")

# Answers of the provider in which a host is missing before it counts as gone.
GONE_ANSWERS = 2
# Between two looks at what other processes do.
PAUSE_SECONDS = 1.0
SAY_SECONDS = 2.0


@dataclass(frozen=True)
class Means:
    """What hosts of one pool are made with. `deploy` and `tunnel` are given the host's address."""

    provider: Provider
    listings: Listings
    definition: Any
    slots: int
    # Raises Refused where the pool's models could not be deployed to any host.
    check: Callable[[], Awaitable[None]]
    deploy: Callable[[Address, tuple[str, ...], Callable[[Progress], None]], Awaitable[None]]
    tunnel: Callable[[Address], Tunnel]
    # Where API and dispatchers reach this process's tunnels.
    advertised: str


class Blame(StrEnum):
    """Whose fault it is that a host failed. A pool's failures put off its next host, whichever machine that is on."""

    MACHINE = "machine"  # which is avoided for a while; it counts for its pool too
    POOL = "pool"  # another machine would have failed as well
    NOBODY = "nobody"


class Failed(Exception):
    """The host is of no use any more, for this reason.

    `charged` is False where it never existed, and `taken` is True where its provider took it away.
    """

    def __init__(self, reason: str, *, charged: bool = True, blame: Blame = Blame.MACHINE, taken: bool = False) -> None:
        super().__init__(reason)
        self.charged = charged
        self.blame = blame
        self.taken = taken


class Gone(Exception):
    """The provider no longer has it."""


def stopped(rented: Rented) -> Failed:
    """Its provider does not run it; to be outbid is no fault of the machine's."""
    return Failed(
        f"It is {rented.state}: {rented.detail}",
        blame=Blame.NOBODY if rented.interrupted else Blame.MACHINE,
        taken=rented.state == "stopped",
    )


def vanished() -> Failed:
    return Failed("The provider no longer has it, and nobody asked for its end.", taken=True)


class HostRecord:
    """`row` is the host as last read, and as it was changed since."""

    def __init__(self, row: Mapping[str, Any], means: Means, store: HostStore, writes: LeadersHosts) -> None:
        self.row = dict(row)
        self.means = means
        self.store = store
        self.writes = writes
        self._said = 0.0

    @property
    def id(self) -> UUID:
        id_: UUID = self.row["id"]
        return id_

    async def move(self, state: str, reason: str = "", **fields: Any) -> None:
        await self.writes.move(self.id, state, reason, **fields)
        log.info("host", host=self.row["label"], state=state, reason=reason)
        self.row |= {"state": state, **fields}

    async def say(self, text: str, *, noted: bool = False) -> None:
        """What does not change is not written down again and again."""
        if not noted and time.monotonic() - self._said < SAY_SECONDS:
            return
        self._said = time.monotonic()
        with suppress(DatabaseUnavailable):
            await self.writes.progress(self.id, text, noted=noted)

    def listed_in(self, listing: Listing) -> bool:
        return self.row["provider_id"] in listing.hosts

    async def running_at(self) -> Address:
        """Where it is reached; raises Failed where it does not run."""
        rented = await self.seen(latest=True)
        if rented.state != "running":
            raise stopped(rented)
        if rented.address is None:
            raise Failed("It runs and has no address.")
        return rented.address

    async def seen(self, *, latest: bool = False) -> Rented:
        """The host in the provider's next answer, or in its latest; raises Failed where it is missing."""
        listing = self.means.listings.latest if latest else None
        for _ in range(GONE_ANSWERS):
            listing = listing or await self.means.listings.next()
            if self.listed_in(listing):
                return listing.hosts[self.row["provider_id"]]
            listing = None
        raise vanished()
