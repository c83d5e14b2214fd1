"""A forward to Triton's HTTP port for the length of a target."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
from types import TracebackType

from nvidia_triton.vast.control import LOOPBACK
from nvidia_triton.vast.ssh import SSH_FAILED, Connection

UP = "up"
# Says that the forwards stand, and ends with the process here that holds its input, in whatever way that one ends.
# Ended by itself, ssh would stay for as long as connections go through it; so the far end of it is killed.
HOLD_OPEN = f"echo {UP}; cat >/dev/null; kill $PPID"
ALIVE_SECONDS = 5
EXIT_SECONDS = 5


class Forward:
    """One local port; `ensure` starts ssh anew where it has ended."""

    def __init__(self, connection: Connection, remote_port: int) -> None:
        self._connection = connection
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
            TargetError: SSH failed.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self._close()
        command = self._connection.forward_command({self.port: self._remote_port}, HOLD_OPEN, ALIVE_SECONDS)
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
            self._process = process
            assert process.stdout is not None
            if process.stdout.readline().strip() == UP:
                return
            self._close()
            errors.seek(0)
            raise self._connection.failure(SSH_FAILED, errors.read())

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        process.kill()
        process.communicate()


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
