"""What is answered without a key: the connection decides, not a setting."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.local import Connections, is_loopback, listening_addresses
from app.config import KeylessAccess, Settings
from nvidia_triton.local.settings import free_ports
from tests.keys.conftest import MakeKey, bearer
from tests.keys.raw_http import Answer, RawRequest, ask_all
from tests.service import ROOT, Service, eventually, running_api

FORWARDED = (
    "Forwarded: for=127.0.0.1",
    "Via: 1.1 proxy",
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-For: ::1",
    "X-Forwarded-For:",
    "X-Forwarded-Host: localhost",
    "X-Forwarded-Proto: http",
    "X-Real-IP: 127.0.0.1",
    "X-Client-IP: 127.0.0.1",
    "CF-Connecting-IP: 127.0.0.1",
    "True-Client-IP: 127.0.0.1",
    "X-Envoy-External-Address: 127.0.0.1",
    "X-Original-Forwarded-For: 127.0.0.1",
)
# A page elsewhere whose name leads here, and one that makes the browser send a request.
FROM_A_PAGE = ("Host: attacker.example", "Origin: http://attacker.example", "Origin: null", "Host: 127.0.0.1.nip.io")


def address(service: Service) -> tuple[str, int]:
    return service.client.base_url.host, service.client.base_url.port or 0


async def ask(service: Service, path: str, *headers: str) -> Answer:
    named = dict(line.split(":", 1) for line in headers)
    (answer,) = await ask_all(*address(service), [RawRequest("GET", path.encode(), named)], 1)
    return answer


async def test_this_machine_needs_no_key(make_settings: Callable[..., Settings]) -> None:
    async with running_api(make_settings()) as service:
        port = address(service)[1]
        for headers in ((), (f"Host: localhost:{port}",), (f"Origin: http://localhost:{port}",), ("Host: [::1]:1",)):
            assert (await ask(service, "/keys/", *headers)).status == 200, headers


@pytest.mark.parametrize("header", [*FORWARDED, *FROM_A_PAGE])
async def test_what_came_through_a_proxy_or_a_page_needs_a_key(
    make_settings: Callable[..., Settings], make_key: MakeKey, header: str
) -> None:
    async with running_api(make_settings()) as service:
        for path in ("/keys/", "/contexts/", "/nowhere"):
            answer = await ask(service, path, header)
            assert (answer.status, answer.code) == (401, "invalid_api_key")
        answer = await ask(service, "/contexts/", header, f"Authorization: Bearer {await make_key()}")
        assert answer.status == 200
        assert (await ask(service, "/health/live", header)).status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_who_listens_for_everybody_needs_keys_from_everybody(
    make_settings: Callable[..., Settings], make_key: MakeKey, host: str
) -> None:
    """`API_HOST` says loopback, as it does by default."""
    async with running_api(make_settings(), host=host) as service:
        assert service.settings.api_host == "127.0.0.1"
        for path in ("/keys/", "/contexts/"):
            assert (await ask(service, path)).status == 401
        assert (await service.client.get("/contexts/", headers=bearer(await make_key()))).status_code == 200


async def test_without_required_keys_admin_rights_are_for_this_machine(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings(auth_required=False)
    async with running_api(settings) as service:
        assert (await ask(service, "/keys/")).status == 200
        for header in (*FORWARDED, *FROM_A_PAGE):
            answer = await ask(service, "/keys/", header)
            assert (answer.status, answer.code) == (403, "scope_missing"), header
            assert (await ask(service, "/contexts/", header)).status == 200
            assert (await ask(service, "/usage?owner=all", header)).status == 403
    async with running_api(settings, host="0.0.0.0") as service:
        assert (await ask(service, "/keys/")).status == 403
        assert (await service.client.post("/contexts/", json={"content": "x"})).status_code == 201


def start_uvicorn(settings: Settings, log: Path, *options: str) -> subprocess.Popen[bytes]:
    """`uvicorn app.main:app`, as an operator starts it."""
    environment = os.environ | {
        "DATABASE_URL": settings.database_url,
        "TRITON_URLS": ",".join(settings.triton_urls),
        "API_HOST": "127.0.0.1",
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "app.main:app", *options],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@asynccontextmanager
async def running_uvicorn(settings: Settings, log: Path, *options: str) -> AsyncIterator[int]:
    (port,) = free_ports(1)
    process = start_uvicorn(settings, log, "--port", str(port), *options)

    async def answers() -> bool:
        assert process.poll() is None, "uvicorn has ended"
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"http://127.0.0.1:{port}/health/live")).status_code == 200
        except httpx.TransportError:
            return False

    try:
        await eventually(answers, "uvicorn answers")
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ((), 200),
        (("--host", "0.0.0.0"), 401),
        (("--host", "0.0.0.0", "--workers", "2"), 401),
        (("--workers", "2"), 200),
        (("--http", "h11"), 200),
        (("--host", "0.0.0.0", "--forwarded-allow-ips", "*"), 401),
    ],
)
async def test_the_socket_decides_however_uvicorn_was_started(
    make_settings: Callable[..., Settings], tmp_path: Path, options: tuple[str, ...], status: int
) -> None:
    async with running_uvicorn(make_settings(), tmp_path / "log", *options) as port:
        asked = [RawRequest("GET", b"/keys/", headers) for headers in ({}, {"X-Forwarded-For": "127.0.0.1"})]
        plain, forwarded = await ask_all("127.0.0.1", port, asked, 1)
        assert (plain.status, forwarded.status) == (status, 401)
        (control,) = await ask_all("127.0.0.1", port, [RawRequest("GET", b"/keys/%0A")])
        assert (control.status, control.code) == (400, "malformed_path")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("tickets.localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("127.0.0.1.nip.io", False),
        ("localhost.example", False),
        ("2130706433", False),
        ("0x7f000001", False),
        ("", False),
    ],
)
def test_addresses_of_this_machine_alone(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_listening_sockets_are_found_and_connected_ones_are_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert listening_addresses(port) == {"127.0.0.1"}
    assert listening_addresses(port) == set()


def test_a_connection_that_is_not_known_is_not_local() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        local: dict[str, Any] = {
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", port),
            "headers": [(b"host", b"localhost")],
        }
        assert Connections().is_local(local)
        for change in (
            {"client": None},
            {"client": ("10.0.0.1", 5)},
            {"server": None},
            {"server": ("/run/api.sock", None)},
            {"server": ("10.0.0.1", port)},
            {"server": ("127.0.0.1", 1)},
            {"headers": []},
            {"headers": [(b"host", b"localhost"), (b"host", b"attacker.example")]},
        ):
            assert not Connections().is_local(local | change), change


@pytest.mark.parametrize(
    ("settings", "access"),
    [
        ({}, KeylessAccess.LOCAL),
        ({"api_host": "0.0.0.0"}, KeylessAccess.LOCAL),
        ({"auth_required": False}, KeylessAccess.ANYWHERE),
        ({"auth_required": True}, KeylessAccess.NONE),
        ({"environment": "production", "database_url": "postgresql://a:long-and-random@h/d"}, KeylessAccess.NONE),
    ],
)
def test_settings_say_who_may_be_answered_without_a_key(settings: dict[str, Any], access: KeylessAccess) -> None:
    assert Settings(**settings).keyless_access is access
