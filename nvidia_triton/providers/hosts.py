"""A host of any provider, as the library that works over SSH is given it."""

from __future__ import annotations

from dataclasses import dataclass

from nvidia_triton.providers.base import Address
from nvidia_triton.vast import context
from nvidia_triton.vast.definition import InstanceDefinition
from nvidia_triton.vast.servers import ServersFile
from nvidia_triton.vast.settings import VastSettings
from nvidia_triton.vast.state import State
from nvidia_triton.vast.work import Work


@dataclass(frozen=True)
class SshHost:
    """`id` is what the make targets call a host of Vast.ai by; elsewhere it is its name."""

    name: str
    addresses: tuple[context.Address, ...]
    user: str
    num_gpus: int
    image: str
    status: str = "running"

    @property
    def id(self) -> str:
        return self.name.removeprefix("vast-")


def ssh_host(address: Address, definition: InstanceDefinition) -> SshHost:
    routes = tuple(context.Address(host, port) for host, port in address.routes)
    return SshHost(address.name, routes, address.user, definition.query.num_gpus, definition.image.name)


def context_of(definition: InstanceDefinition, settings: VastSettings, work: Work) -> context.Context:
    return context.Context(settings, definition, State(settings.local_dir), ServersFile(settings.local_dir), work)
