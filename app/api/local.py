"""Whether a request was made on this machine, by its own user: decided by the connection, not by settings.

Without an API key only such requests may be trusted. Both ends of the connection must be loopback addresses, the
process must listen on loopback only, no proxy may have passed the request on, and a browser must have been sent here by
a page of this machine: a page elsewhere can make its name resolve to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import os
import re
import socket
import stat
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.types import Scope

# Added by proxies. One that adds none of these and runs on this machine cannot be told from a local client.
FORWARDED = re.compile(
    rb"forwarded|via|x-(forwarded|original|envoy|real|client|cluster-client)(-.*)?|cf-connecting-ip|true-client-ip",
    re.DOTALL,
)
OPEN_FILES = "/dev/fd"


class Connections:
    """Tells local requests from others; remembers what this process listens on."""

    def __init__(self) -> None:
        self._loopback_only: dict[int, bool] = {}

    def is_local(self, scope: Scope) -> bool:
        client, server = scope.get("client"), scope.get("server")
        return (
            client is not None
            and server is not None
            and server[1] is not None
            and is_loopback(client[0])
            and is_loopback(server[0])
            and self._listens_on_loopback_only(server[1])
            and _was_sent_from_here(scope)
        )

    def _listens_on_loopback_only(self, port: int) -> bool:
        if port not in self._loopback_only:
            addresses = listening_addresses(port)
            self._loopback_only[port] = bool(addresses) and all(map(is_loopback, addresses))
        return self._loopback_only[port]


def listening_addresses(port: int) -> set[str]:
    """The addresses on which this process accepts connections to `port`."""
    found = set()
    for name in os.listdir(OPEN_FILES):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as opened:
                if not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    continue
                address = opened.getsockname()
                if isinstance(address, tuple) and address[1] == port:
                    found.add(str(address[0]))
    return found


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine alone; names other than localhost are not looked up."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _was_sent_from_here(scope: Scope) -> bool:
    hosts = 0
    for name, value in scope["headers"]:
        if FORWARDED.fullmatch(name):
            return False
        if name == b"host":
            hosts += 1
            if not _names_loopback("//" + value.decode("latin-1")):
                return False
        elif name == b"origin" and not _names_loopback(value.decode("latin-1")):
            return False
    return hosts == 1


@lru_cache(maxsize=1024)
def _names_loopback(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
