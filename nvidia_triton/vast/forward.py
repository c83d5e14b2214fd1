"""A forward to Triton's HTTP port for the length of a target."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import tempfile
import time
from threading import Thread, Timer
from types import TracebackType

from nvidia_triton.vast.control import LOOPBACK
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.ssh import SSH_FAILED, Connection

UP, BUSY = "up", "busy"
SILENT = "it is silent"
# Says that the forwards stand, and ends with the process here that holds its input, in whatever way that one ends.
# Ended by itself, ssh would stay for as long as connections go through it; so the far end of it is killed.
HOLD_OPEN = f"echo {UP}; cat >/dev/null; kill $PPID"
# A lock of the far end must also end with a machine that is gone without a word: it hears from us, or lets go.
BEAT_SECONDS = 5.0
QUIET_SECONDS = 30
# So long a far end may still hold what was ours before the connection broke.
BUSY_SECONDS = QUIET_SECONDS + 10.0
BUSY_AT_FIRST_SECONDS = 3.0
PAUSE_SECONDS = 0.5
ALIVE_SECONDS = 5
# From the start of ssh to its forwards; ConnectTimeout ends when the far end has said what it is.
UP_SECONDS = 30.0
EXIT_SECONDS = 5


class Busy(TargetError):
    """Somebody else holds what the guard of a forward asks for."""


class Forward:
    """One local port; `ensure` starts ssh anew where it has ended.

    `guard`, a script that says `busy` and ends where it may not go on, runs there first and stays with the forward.
    """

    def __init__(self, connection: Connection, remote_port: int, guard: str = "") -> None:
        self._connection = connection
        self._work = connection.context.work
        self._remote = _guarded(guard) if guard else HOLD_OPEN
        self._patience = BUSY_AT_FIRST_SECONDS
        self._remote_port = remote_port
        self._process: subprocess.Popen[str] | None = None
        self.port = free_port()

    def __enter__(self) -> Forward:
        self.ensure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def ensure(self) -> None:
        """
        Raises:
            Busy: the guard lets nobody in.
            TargetError: SSH failed.
        """
        if self._process is not None and self._process.poll() is None:
            return
        deadline = time.monotonic() + self._patience
        while not self._open():
            if time.monotonic() > deadline:
                raise Busy(f"{self._connection.instance.name} is busy.")
            self._work.pause(PAUSE_SECONDS)
        self._patience = BUSY_SECONDS

    def _open(self) -> bool:
        """False when the far end is busy."""
        self._close()
        command = self._connection.forward_command({self.port: self._remote_port}, self._remote, ALIVE_SECONDS)
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
            self._process = process
            self._work.adopt(process)
            assert process.stdout is not None
            silent = Timer(UP_SECONDS, process.kill)
            silent.start()
            try:
                first = process.stdout.readline().strip()
            finally:
                silent.cancel()
            if first == UP:
                Thread(target=_beat, args=(process,), daemon=True).start()
                return True
            self._close()
            if first == BUSY:
                return False
            self._work.check()
            errors.seek(0)
            raise self._connection.failure(SSH_FAILED, errors.read() or SILENT)

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        process.kill()
        process.communicate()
        self._work.release(process)


def _guarded(script: str) -> str:
    hold = f"echo {UP}; while read -r -t {QUIET_SECONDS} _; do :; done; kill $PPID"
    return f"exec bash -c {shlex.quote(script + hold)}"


def _beat(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        while process.poll() is None:
            process.stdin.write("\n")
            process.stdin.flush()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(BEAT_SECONDS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
