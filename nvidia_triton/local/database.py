"""Commands against the local database: `database psql ...` and, starting it for them, `database alembic ...`."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nvidia_triton.local.postgres import HOST, PostgresServer
from nvidia_triton.local.process import LocalError, describe_exit
from nvidia_triton.local.run import only_one
from nvidia_triton.local.settings import LocalSettings, check_port, local_settings


def start(server: PostgresServer, log: Path) -> subprocess.Popen[bytes]:
    """Starts a Postgres and blocks until its database is there; it dies with this process.

    Raises:
        LocalError: its port is taken, or it does not start.
    """
    server.prepare()
    check_port(HOST, server.port, "Postgres", "POSTGRES_PORT")
    with log.open("ab") as output:
        said_before = output.tell()
        process = subprocess.Popen(
            server.command(),
            env=server.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    # As long as it takes: after a crash it reads its log first.
    while not server.is_ready(process.pid):
        if process.poll() is not None:
            told = log.read_bytes()[said_before:].decode(errors="replace").strip().splitlines()
            raise LocalError(
                f"Postgres did not start ({describe_exit(process.returncode)}): {' '.join(told[-3:])} "
                f"All that it said is in {log}."
            )
        time.sleep(0.01)
    server.ensure_database()
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """A fast shutdown, the immediate one if it takes long."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)


@contextlib.contextmanager
def reachable(settings: LocalSettings) -> Iterator[None]:
    """The database for the time of a `with`: the running one, else the local one started for it."""
    server = settings.postgres
    if server is None or server.running_pid():
        yield
        return
    with only_one(settings):
        process = start(server, settings.local_dir / "postgres.log")
        try:
            yield
        finally:
            stop(process)


def psql(settings: LocalSettings, arguments: list[str]) -> int:
    server = settings.postgres
    if server is None:
        raise LocalError('DATABASE_URL names another database: use `psql "$DATABASE_URL"`.')
    if not server.running_pid():
        raise LocalError("The local Postgres does not run: start it with `make run` in another terminal.")
    command, environment = server.psql(*arguments)
    os.execvpe(command[0], command, environment)  # noqa: S606


def main(arguments: list[str]) -> int:
    try:
        settings = local_settings(os.environ)
        if arguments[:1] == ["psql"]:
            return psql(settings, arguments[1:])
        with reachable(settings):
            command = [sys.executable, "-m", *arguments]
            return subprocess.run(command, env=settings.environment, cwd=settings.root, check=False).returncode
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
