"""What a setting must be, beyond its type: each check raises ValueError with a sentence that names the setting."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_network
from urllib.parse import urlsplit

DEVELOPMENT_PASSWORDS = frozenset({"tickets-dev-only", "postgres", "password", "changeme"})
ROOT_PATH = re.compile(r"(/[\w.~-]+)*", re.ASCII)
ORIGIN = re.compile(r"https?://[^/\s?#@*]+")


def server_address(text: str) -> str:
    """The text again.

    Raises:
        ValueError: it is not host:port.
    """
    host, _, port = text.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 65536
    if not host or not is_port or "/" in text or any(each.isspace() for each in text):
        raise ValueError(f"{text!r} is not host:port, for example 127.0.0.1:8001")
    return text


def check_passwords(passwords: dict[str, str]) -> None:
    """Those of a production, by the setting that holds them."""
    for name, password in passwords.items():
        if password in DEVELOPMENT_PASSWORDS:
            raise ValueError(f"{name} holds a development password and ENVIRONMENT is production: set one of your own")


def check_servers(urls: Iterable[str]) -> None:
    for url in urls:
        try:
            server_address(url)
        except ValueError as error:
            raise ValueError(f"TRITON_URLS: {error}") from None


def check_networks(networks: Iterable[str]) -> None:
    for network in networks:
        try:
            ip_network(network)
        except ValueError:
            raise ValueError(f"WEBHOOK_ALLOW_NETWORKS: {network!r} is no network, as 10.1.0.0/16 is") from None


def check_proxy(root_path: str, proxies: Iterable[str], origins: Iterable[str]) -> None:
    if not ROOT_PATH.fullmatch(root_path):
        raise ValueError(f"ROOT_PATH: {root_path!r} is no path as /llm is: it has no slash at its end")
    for proxy in proxies:
        try:
            ip_network(proxy)
        except ValueError:
            raise ValueError(
                f"TRUSTED_PROXIES: {proxy!r} is neither an address nor a network, as 10.1.0.5 and 10.1.0.0/16 are"
            ) from None
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise ValueError(
                f"CORS_ORIGINS: {origin!r} is no origin, as https://app.example.org is, with no slash at its end"
            )


def check_traces(endpoint: str | None, protocol: str) -> None:
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(each.isspace() for each in endpoint):
        raise ValueError("OTEL_EXPORTER_OTLP_ENDPOINT is no URL as http://127.0.0.1:4318 is")
    if protocol != "http/protobuf":
        raise ValueError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, and traces are sent by http/protobuf alone: leave it empty, "
            "and name a collector's HTTP port, usually 4318"
        )
