"""What every target is given, and an instance as the targets see it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nvidia_triton.vast.servers import ServersFile
from nvidia_triton.vast.settings import VastSettings
from nvidia_triton.vast.state import State
from nvidia_triton.vast.work import Work

if TYPE_CHECKING:
    from nvidia_triton.vast.definition import InstanceDefinition


@dataclass(frozen=True)
class Context:
    """Settings, the instance definition, the state of this checkout, and how it is watched and ended."""

    settings: VastSettings
    definition: InstanceDefinition
    state: State
    servers: ServersFile
    work: Work


@dataclass(frozen=True)
class Address:
    """Where SSH answers."""

    host: str
    port: int


class Host(Protocol):
    """A machine that SSH leads to, of any provider. The targets call it `id`; its host key is kept under `name`."""

    @property
    def id(self) -> int | str: ...
    @property
    def name(self) -> str: ...
    @property
    def addresses(self) -> tuple[Address, ...]: ...
    @property
    def user(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def num_gpus(self) -> int: ...
    @property
    def image(self) -> str: ...


@dataclass(frozen=True)
class Instance:
    """One rented instance. `addresses` holds the direct one first, then the proxy; empty until it runs.

    `status` is Vast's actual_status ("" while it is null); `dph_total` is dollars an hour while it is not stopped,
    `storage_hourly` while it is, 0 where that is not known; `start_date` is in Unix seconds.
    """

    id: int
    label: str
    status: str
    status_msg: str
    intended_status: str
    addresses: tuple[Address, ...]
    gpu_name: str
    num_gpus: int
    dph_total: float
    storage_hourly: float
    start_date: float | None
    image: str
    machine: str = ""
    interruptible: bool = False
    cur_state: str = ""

    @property
    def name(self) -> str:
        """What the fleet and known_hosts call it."""
        return f"vast-{self.id}"

    @property
    def user(self) -> str:
        return "root"

    @property
    def stopped(self) -> bool:
        """By its tenant, by Vast.ai for want of money, or because somebody bid more for an interruptible one."""
        return self.intended_status == "stopped" or (self.interruptible and self.cur_state == "stopped")

    @property
    def hourly(self) -> float:
        """Dollars an hour as it is now: the disk of a stopped instance goes on costing."""
        return self.storage_hourly if self.stopped else self.dph_total

    @property
    def hours(self) -> float:
        return 0.0 if self.start_date is None else max(0.0, time.time() - self.start_date) / 3600

    @property
    def spent(self) -> float:
        """Dollars since it was made, without traffic; times of rest, which Vast.ai does not tell, at the full price."""
        return self.hours * self.dph_total
