"""A checkout of its own, in which the runner can be started, stopped and killed."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvidia_triton.local.settings import ROOT, free_ports

PORTS = (
    *("API_PORT", "POSTGRES_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT"),
    "LLAMA_SERVER_PORT",
)
MARKER = "TICKETS_TEST_RUN"

API = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.ThreadingHTTPServer((os.environ["API_HOST"], int(os.environ["API_PORT"])), Handler).serve_forever()
"""
WORKER = "import time\nprint('waiting for work')\ntime.sleep(600)\n"
MIGRATION = """
import asyncio, asyncpg, os
async def main():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    await connection.execute("CREATE TABLE IF NOT EXISTS starts (at timestamptz DEFAULT now())")
    await connection.execute("INSERT INTO starts DEFAULT VALUES")
    print("this is start", await connection.fetchval("SELECT count(*) FROM starts"))
    await connection.close()
asyncio.run(main())
"""


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Runner:
    """One `make run`, or one of its modules, with its output in a file."""

    def __init__(self, checkout: Path, command: list[str], env: dict[str, str]) -> None:
        self.marker = uuid.uuid4().hex
        self.env = {**env, MARKER: self.marker}
        self.log = checkout / f"{self.marker}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=checkout, env=self.env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text()

    def ready(self) -> "Runner":
        wait_for(lambda: "Ready after" in self.output or self.process.poll() is not None, "no banner")
        assert "Ready after" in self.output, self.output
        return self

    def exit_code(self, seconds: float = 60) -> int:
        return self.process.wait(timeout=seconds)

    def processes(self) -> dict[int, str]:
        """Everything this run has started and that lives, by its environment; pid and command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"{MARKER}={self.marker}".encode() in (entry / "environ").read_bytes():
                        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found[int(entry.name)] = command
        return found

    def pid_of(self, fragment: str) -> int:
        return next(pid for pid, command in self.processes().items() if fragment in command)

    def assert_gone(self, seconds: float = 60) -> None:
        wait_for(lambda: not self.processes(), f"left behind: {self.processes()}", seconds)

    def destroy(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Checkout:
    """A directory with the runner in it; `env` has ports of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        ports = {name: str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
        inherited = {
            name: value for name, value in os.environ.items() if not re.match("(MAKE|DATABASE_|TRITON_)", name)
        }
        self.env = {**inherited, **ports}
        self.runners: list[Runner] = []

    def start(self, *command: str, **env: str) -> Runner:
        runner = Runner(self.path, list(command), {**self.env, **env})
        self.runners.append(runner)
        return runner

    def run(self, **env: str) -> Runner:
        return self.start(sys.executable, "-m", "nvidia_triton.local.run", **env)

    def make(self, target: str, **env: str) -> Runner:
        return self.start("make", "--old-file=install", target, **env)


def copy_runner(path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nvidia_triton", path / "nvidia_triton", ignore=ignore)
    for name in ("Makefile", ".env.api.dev", ".env.db.dev"):
        shutil.copy(ROOT / name, path / name)
    (path / ".venv").symlink_to(sys.prefix)
    (path / ".venv-engine").symlink_to(ROOT / ".venv-engine")


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    """The real runner and Postgres with stand-ins for the application, and no Triton."""
    copy_runner(tmp_path)
    stand_ins = {
        "app/main.py": API,
        "app/worker.py": WORKER,
        "alembic/__init__.py": "",
        "alembic/__main__.py": MIGRATION,
    }
    for name, text in stand_ins.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    made = Checkout(tmp_path)
    made.env["TRITON_URLS"] = "127.0.0.1:1"
    yield made
    for runner in made.runners:
        runner.destroy()


@pytest.fixture
def full_checkout(tmp_path: Path) -> Iterator[Checkout]:
    """All of it."""
    copy_runner(tmp_path)
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    for name in ("app", "migrations", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    made = Checkout(tmp_path)
    yield made
    for runner in made.runners:
        runner.destroy()
