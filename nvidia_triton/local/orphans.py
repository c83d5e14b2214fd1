"""Ends what a tritonserver's processes leave behind.

vLLM's engine is a child of the model's stub, with children of its own. When the stub is killed they live on with the
model's memory, and nobody but a subreaper above them learns whose they were.
"""

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
# A process that lost its parent while the model unloads ends by itself within this.
LOOK_SECONDS = 1.0


class Adoption:
    """From here on orphans among our descendants become our children; those beside `server` are ended."""

    def __init__(self) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, server: int) -> None:
        """Ends orphans while the server lives, as they hold what its models need when they are loaded again."""
        self._thread = threading.Thread(target=self._watch, args=(server,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ends all that is left, once the server has."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        while left := children():
            for pid in left:
                end(pid)

    def _watch(self, server: int) -> None:
        before: set[int] = set()
        while not self._over.wait(LOOK_SECONDS):
            orphans = children() - {server}
            for pid in orphans & before:
                end(pid)
            before = orphans


def children() -> set[int]:
    """Pids of this process's children, ended ones that nobody has waited for among them."""
    return {pid for pid, parent, _ in processes() if parent == os.getpid()}


def end(pid: int) -> None:
    """Kills a child of ours and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def end_session(leader: int) -> None:
    """Kills the processes of a session whose leader has ended, whoever is their parent now."""
    while left := [pid for pid, session in _leaderless() if session == leader]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def end_abandoned(directory: Path) -> None:
    """Ends what was started in `directory` by servers that have ended together with their parent."""
    wanted = os.path.realpath(directory)
    for pid, _ in _leaderless():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/cwd") == wanted:
                os.kill(pid, signal.SIGKILL)


def _leaderless() -> list[tuple[int, int]]:
    """Processes whose session's leader has ended, and that session; its number is given to no other process.

    Never those of our own session, and none whose leader cannot be seen from this container: its number is 0.
    """
    found = list(processes())
    led = {pid for pid, _, _ in found} | {0, os.getsid(0)}
    return [(pid, session) for pid, _, session in found if session not in led]


def processes() -> Iterator[tuple[int, int, int]]:
    """Pid, parent and session of every process, except those that have ended and whose parent is another one."""
    ours = os.getpid()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name in the second field may hold anything, spaces and brackets too.
                state, parent, _, session, *_ = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if state not in "ZX" or int(parent) == ours:
                    yield int(entry), int(parent), int(session)
