"""Which addresses a webhook may reach: those of the public internet, and networks the operator allows."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# RFC 6052: the last 32 bits are the IPv4 address that a NAT64 gateway connects to.
NAT64 = IPv6Network("64:ff9b::/96")
# Addresses of one machine or site lie outside; what else does not reach a public host directly follows.
GLOBAL_UNICAST = IPv6Network("2000::/3")
NOT_HOSTS = (
    IPv6Network("2001::/23"),  # protocol assignments: Teredo, ORCHID
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4 holds an IPv4 address
    IPv6Network("3fff::/20"),  # documentation
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv4Network("192.0.0.0/24"),  # protocol assignments
)
# What clouds tell a machine about itself, secrets included. Allowing private addresses does not allow these.
METADATA = (
    IPv4Network("169.254.0.0/16"),
    IPv4Network("100.100.100.200/32"),
    IPv4Network("168.63.129.16/32"),
    IPv4Network("192.0.0.192/32"),
    IPv6Network("fe80::/10"),
    IPv6Network("fd00:ec2::/32"),
    IPv6Network("fd20:ce::/32"),
)


def literal(host: str) -> Address | None:
    """The address that `host` is, also in the shortened and numeric forms of IPv4; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def carried(address: Address) -> Address:
    """The IPv4 address inside a mapped or NAT64 one: that is what would be reached."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def is_public(address: Address) -> bool:
    """Whether it belongs to one host of the public internet."""
    address = carried(address)
    if any(address in network for network in (*NOT_HOSTS, *METADATA) if network.version == address.version):
        return False
    if isinstance(address, IPv6Address):
        return address in GLOBAL_UNICAST and address.is_global
    return address.is_global and not address.is_multicast and not address.is_reserved


@dataclass(frozen=True)
class AddressPolicy:
    """`networks` are allowed whatever they are; `private` allows loopback and private addresses as well."""

    private: bool = False
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, private: bool, networks: Sequence[str]) -> AddressPolicy:
        return cls(private, tuple(ip_network(each) for each in networks))

    def allows(self, address: Address) -> bool:
        address = carried(address)
        if is_public(address) or any(address in each for each in self.networks if each.version == address.version):
            return True
        if any(address in each for each in METADATA if each.version == address.version):
            return False
        ours = address.is_private and not (address.is_unspecified or address.is_reserved)
        return self.private and (address.is_loopback or ours)
