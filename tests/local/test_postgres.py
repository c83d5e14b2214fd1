"""The local Postgres under the accounts it may have to run as."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from nvidia_triton.local import child
from nvidia_triton.local.database import start
from nvidia_triton.local.postgres import PostgresServer, binary, namespaces_permitted
from nvidia_triton.local.process import LocalError, shielded
from nvidia_triton.local.settings import free_ports, local_settings
from tests.postgres_server import RunningPostgres, start_postgres

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that every account may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="tickets-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def test_a_commit_survives_a_kill(tmp_path: Path) -> None:
    server = start_postgres(tmp_path / "data")

    async def write() -> None:
        connection = await asyncpg.connect(server.url)
        await connection.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
        server.kill()

    async def read() -> int:
        connection = await asyncpg.connect(server.url)
        try:
            return int(await connection.fetchval("SELECT n FROM kept"))
        finally:
            await connection.close()

    asyncio.run(write())
    server.start()
    assert asyncio.run(read()) == 1
    server.stop()
    assert server.server.running_pid() is None


def test_a_wrong_password_is_explained(tmp_path: Path) -> None:
    server = start_postgres(tmp_path / "data")
    other = replace(server.server, password="another")
    with pytest.raises(LocalError, match=r"other user or password than \.env\.db\.dev says"):
        other.ensure_database()
    server.stop()


def outgoing_ports() -> range:
    """Those that this system gives to outgoing connections."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return range(int(first), int(last) + 1)


@pytest.mark.skipif(not Path("/proc/sys/net/ipv4").exists(), reason="not Linux")
def test_no_outgoing_connection_can_take_the_usual_ports() -> None:
    settings = local_settings({})
    assert settings.postgres
    assert settings.triton
    triton = settings.triton
    usual = {settings.postgres.port, settings.api_port, triton.http_port, triton.grpc_port, triton.metrics_port}
    assert not usual & set(outgoing_ports())


def test_a_port_in_use_is_named_with_what_to_do(tmp_path: Path) -> None:
    server = start_postgres(tmp_path / "data")
    other = PostgresServer(tmp_path / "other", port=server.port)
    try:
        with pytest.raises(LocalError, match=rf"Port {server.port} for Postgres is already in use: .*POSTGRES_PORT="):
            start(other, tmp_path / "other.log")
    finally:
        server.stop()


def test_why_it_did_not_start_is_said(tmp_path: Path) -> None:
    log = tmp_path / "postgres.log"
    log.write_text("what an earlier start said\n")
    server = PostgresServer(tmp_path / "data", port=free_ports(1)[0], settings={"no_such_setting": "1"})
    with pytest.raises(LocalError, match=r'did not start \(exit code 1\): .*parameter "no_such_setting"') as raised:
        start(server, log)
    assert "earlier" not in str(raised.value)


def test_an_older_version_is_explained(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("16\n")
    with pytest.raises(LocalError, match="data of Postgres 16, and this is Postgres 18"):
        PostgresServer(tmp_path).prepare()


@needs_root
@pytest.mark.skipif(os.geteuid() == 0 and not namespaces_permitted(), reason="no user namespaces here")
def test_root_keeps_its_files_in_a_namespace(tmp_path: Path) -> None:
    server = start_postgres(tmp_path / "data")
    assert server.server.account == child.NAMESPACE
    assert owner_of(server.pid) == 0
    assert (tmp_path / "data").stat().st_uid == 0
    server.stop()


def nobody_can_run_postgres() -> bool:
    command = shielded([binary("postgres"), "-V"], account=child.NOBODY)
    return subprocess.run(command, capture_output=True).returncode == 0


@needs_root
@pytest.mark.skipif(os.geteuid() == 0 and not nobody_can_run_postgres(), reason="nobody cannot enter .venv")
def test_root_without_namespaces_becomes_nobody_and_back(open_directory: Path) -> None:
    as_nobody = PostgresServer(open_directory / "data", port=free_ports(1)[0], account=child.NOBODY)
    server = RunningPostgres(as_nobody)
    nobody = child.nobody_ids()[0]
    assert owner_of(server.pid) == nobody
    assert (open_directory / "data").stat().st_uid == nobody
    server.stop()

    as_root = replace(as_nobody, account=child.NAMESPACE)
    server = RunningPostgres(as_root)
    assert (open_directory / "data/PG_VERSION").stat().st_uid == 0
    server.stop()


@needs_root
def test_nobody_cannot_reach_a_private_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    server = PostgresServer(tmp_path / "data", account=child.NOBODY)
    with pytest.raises(LocalError, match=r"the account nobody cannot reach .*: move the checkout"):
        server.prepare()
