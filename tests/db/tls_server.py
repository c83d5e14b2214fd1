"""A Postgres that admits nobody without TLS: the wheel's is built without OpenSSL, so it is another one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import trustme

from nvidia_triton.local import child
from nvidia_triton.local.postgres import server_account
from nvidia_triton.local.process import shielded
from nvidia_triton.local.settings import free_ports

PASSWORD = "tls/secret+#"
# The directory of initdb and postgres; else the newest of the distribution's.
BIN_VARIABLE = "POSTGRES_TLS_BIN"
ADVICE = (
    "no Postgres with TLS is installed: run `apt-get update && apt-get install -y postgresql`, or name the directory "
    f"of its programs in {BIN_VARIABLE}"
)


def programs() -> Path | None:
    if named := os.environ.get(BIN_VARIABLE):
        return Path(named)
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(installed, key=lambda path: int(path.parent.name), default=None)


def version(bin_: Path) -> int:
    text = subprocess.run([bin_ / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"(\d+)\.", text)
    assert match, text
    return int(match[1])


@dataclass(frozen=True)
class TlsPostgres:
    """`certificate` and `key` are of the client `certified`, who needs no password; `ca` signed the server's."""

    directory: Path
    bin: Path
    port: int
    ca: Path
    other_ca: Path
    certificate: Path
    key: Path

    def url(self, host: str = "localhost", *, user: str = "tickets", database: str = "tickets", **query: str) -> str:
        """`host` is a name, or a list of host:port."""
        hosts = host if ":" in host else f"{host}:{self.port}"
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        return f"postgresql://{user}:{quote(PASSWORD, safe='')}@{hosts}/{database}?{text}"

    def socket_url(self) -> str:
        return (
            f"postgresql://tickets:{quote(PASSWORD, safe='')}@/tickets?host={quote(str(self.directory), safe='')}"
            f"&port={self.port}"
        )


def _run_as_server(*command: str | Path) -> None:
    done = subprocess.run(
        shielded([str(word) for word in command], account=server_account()),
        capture_output=True, text=True, timeout=120, check=False, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _is_ready(file: Path) -> bool:
    return file.exists() and "ready" in file.read_text()


@contextmanager
def tls_postgres(bin_: Path) -> Iterator[TlsPostgres]:
    # A socket's path is short, and the server's account may enter it, unlike pytest's directories.
    directory = Path(tempfile.mkdtemp(prefix="tickets-tls-"))
    ca, other = trustme.CA(), trustme.CA()
    data = directory / "data"
    server = TlsPostgres(
        directory, bin_, free_ports(1)[0], directory / "ca.pem", directory / "other.pem", directory / "client.pem",
        directory / "client.key",
    )  # fmt: skip
    ca.cert_pem.write_to_path(server.ca)
    other.cert_pem.write_to_path(server.other_ca)
    client = ca.issue_cert("certified", common_name="certified")
    client.cert_chain_pems[0].write_to_path(server.certificate)
    client.private_key_pem.write_to_path(server.key)
    server.key.chmod(0o600)
    own = ca.issue_cert("localhost")
    own.cert_chain_pems[0].write_to_path(directory / "server.pem")
    own.private_key_pem.write_to_path(directory / "server.key")
    (directory / "server.key").chmod(0o600)
    (directory / "password").write_text(f"{PASSWORD}\n")
    if server_account() == child.NOBODY:
        for path in (directory, *directory.iterdir()):
            os.chown(path, *child.nobody_ids())
    _run_as_server(
        bin_ / "initdb", "-D", data, "-U", "tickets", f"--pwfile={directory / 'password'}", "--auth=scram-sha-256",
        "--encoding=UTF8", "--locale=C", "--no-sync",
    )  # fmt: skip
    (data / "pg_hba.conf").write_text(
        "local all all scram-sha-256\nhostssl all certified all cert\nhostssl all all all scram-sha-256\n"
    )
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(server.port),
        "unix_socket_directories": str(directory),
        "ssl": "on",
        "ssl_cert_file": str(directory / "server.pem"),
        "ssl_key_file": str(directory / "server.key"),
        "ssl_ca_file": str(server.ca),
        "dynamic_shared_memory_type": "mmap",
        "fsync": "off",
        "jit": "off",
    }
    options = [f"-c{name}={value}" for name, value in settings.items()]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            shielded(
                [str(bin_ / "postgres"), "-D", str(data), *options],
                death_signal=signal.SIGINT, account=server_account(),
            ),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not _is_ready(data / "postmaster.pid"):
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < end, (directory / "log").read_text()
            time.sleep(0.02)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        shutil.rmtree(directory, ignore_errors=True)
