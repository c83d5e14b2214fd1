"""A real PgBouncer before the test's Postgres, on a loopback port, under an account that is not root's."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nvidia_triton.local import child
from nvidia_triton.local.process import shielded
from nvidia_triton.local.settings import free_ports

# The program; else the distribution's.
VARIABLE = "PGBOUNCER"
ADVICE = (
    f"PgBouncer is missing: run `apt-get update && apt-get install -y pgbouncer`, or name the program in {VARIABLE}"
)
# Before it PgBouncer carries no prepared statements from one server connection to another.
PREPARED_SINCE = (1, 21)


def program() -> str | None:
    return os.environ.get(VARIABLE) or shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def version() -> tuple[int, int]:
    found = program()
    if found is None:
        return (0, 0)
    text = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"(\d+)\.(\d+)", text)
    assert match, text
    return int(match[1]), int(match[2])


@contextmanager
def pgbouncer(url: str, pool_mode: str, **settings: str) -> Iterator[str]:
    """The URL that leads to the same database through PgBouncer; `settings` go into its configuration."""
    found = program()
    assert found is not None
    parts = urlsplit(url)
    directory = Path(tempfile.mkdtemp(prefix="tickets-bouncer-"))
    directory.chmod(0o755)
    port = free_ports(1)[0]
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    users = directory / "users"
    users.write_text(f'"{user}" "{password}"\n')
    ini = directory / "pgbouncer.ini"
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": str(users),
        "pool_mode": pool_mode,
        **settings,
    }
    ini.write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port}\n[pgbouncer]\n"
        + "".join(f"{name} = {value}\n" for name, value in lines.items())
    )
    account = child.NOBODY if os.geteuid() == 0 else child.SAME
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            shielded([found, str(ini)], death_signal=signal.SIGINT, account=account),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 30
        while not _answers(port):
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < end, (directory / "log").read_text()
            time.sleep(0.02)
        yield url.replace(f":{parts.port}/", f":{port}/")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(directory)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
