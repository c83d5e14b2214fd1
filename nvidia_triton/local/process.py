"""Child processes that log into one terminal and never outlive their parent."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nvidia_triton.local import child

PALETTE = (36, 33, 35, 34, 32, 96, 93, 95)
CHUNK_BYTES = 65536


class LocalError(Exception):
    """Something about this machine or checkout keeps the stack from running; the text says what to do."""


def shielded(
    command: Sequence[str], *, death_signal: signal.Signals = signal.SIGKILL, account: str = child.SAME
) -> list[str]:
    """The command behind the launcher that ends it with this process and switches the account."""
    launcher = [sys.executable, "-I", "-S", str(Path(child.__file__))]
    return [*launcher, str(int(death_signal)), str(os.getpid()), account, *command]


def describe_exit(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"killed by {name}"


class Console:
    """Writes the lines of every child to one descriptor, each behind the coloured name of its child."""

    def __init__(self, descriptor: int, *, colour: bool | None = None) -> None:
        self.descriptor = descriptor
        if colour is None:
            colour = os.isatty(descriptor) and "NO_COLOR" not in os.environ
        self.colour = colour
        self.broken = asyncio.Event()
        self._used = 0

    def prefix(self, name: str) -> bytes:
        if not self.colour:
            return f"{name:<10} | ".encode()
        code = PALETTE[self._used % len(PALETTE)]
        self._used += 1
        return f"\x1b[{code}m{name:<10} |\x1b[0m ".encode()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self.broken.is_set():
            try:
                view = view[os.write(self.descriptor, view) :]
            except BlockingIOError:
                # Somebody who shares the terminal made it non-blocking.
                os.set_blocking(self.descriptor, True)
            except OSError:
                self.broken.set()

    def say(self, text: str) -> None:
        self.write(f"{text}\n".encode())

    async def copy(self, prefix: bytes, stream: asyncio.StreamReader) -> None:
        """Copies whole lines until the end of the stream, one write for all lines of a chunk."""
        rest = b""
        while chunk := await stream.read(CHUNK_BYTES):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if len(rest) > CHUNK_BYTES:
                lines.append(rest)
                rest = b""
            if lines:
                self.write(b"".join(prefix + line + b"\n" for line in lines))
        if rest:
            self.write(prefix + rest + b"\n")


class Child:
    """One running command in a session of its own, so that a Ctrl-C reaches it only through us."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, console: Console) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        assert process.stdout is not None
        self._copy = asyncio.create_task(console.copy(console.prefix(name), process.stdout))

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        console: Console,
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
    ) -> "Child":
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        return cls(name, process, console)

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Waits for the exit and for the last lines; returns the exit code, negative for a signal."""
        returncode = await self._process.wait()
        # A grandchild may keep the pipe open, so the end of the stream is not waited for without limit.
        await asyncio.wait([self._copy], timeout=0.5)
        return returncode

    async def stop(
        self,
        polite: signal.Signals,
        *,
        grace: float,
        hurry: asyncio.Event,
        rude: signal.Signals = signal.SIGKILL,
    ) -> None:
        """Sends `polite`, after `grace` seconds or on `hurry` sends `rude`, in the end SIGKILL to what is left."""
        for number, patience, may_hurry in ((polite, grace, True), (rude, 5.0, False)):
            if not self.running:
                break
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            hurried = asyncio.create_task(hurry.wait()) if may_hurry else None
            exited = asyncio.create_task(self._process.wait())
            tasks = {exited} if hurried is None else {exited, hurried}
            await asyncio.wait(tasks, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.wait()
        self._copy.cancel()


def processes_in(directory: Path) -> list[int]:
    """Pids of the processes whose working directory is `directory`, as far as we may see them."""
    wanted = os.path.realpath(directory)
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/cwd") == wanted:
                    found.append(int(entry))
    return sorted(found)


def process_name(pid: int) -> str:
    """The short name of a process; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "" if os.path.isdir("/proc") else _name_by_ps(pid)


def _name_by_ps(pid: int) -> str:
    done = subprocess.run(["ps", "-o", "comm=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip()).name


def caught_signals(pid: int) -> int | None:
    """The bit mask of the signals a process has handlers for; None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")), 0)
