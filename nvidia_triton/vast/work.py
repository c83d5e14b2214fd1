"""How a piece of the library's work is watched and ended. The library itself neither prints nor sleeps."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Cancelled(Exception):
    """Raised in the thread of a work that was cancelled, at its next pause or when its program ends."""


class Line:
    """What something that takes long says of itself; here nobody listens."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def update(self, text: str, *, percent: float | None = None, bytes: int | None = None, moved: str = "") -> None:
        """The text may hold a clock; that something moved shows in the other three."""

    def says(self, state: str, spent: float | None = None) -> None:
        """A state that is waited out, and the dollars so far."""


class Work:
    """Given to everything that may take long. `cancel` may be called from any thread."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[Any]] = set()

    def say(self, text: str) -> None:
        """A sentence worth keeping."""

    def done(self, step: str, text: str) -> None:
        """A part is finished."""

    def begins(self, step: str) -> None:
        """A step of a deployment begins."""

    @contextmanager
    def waiting(self) -> Iterator[Line]:
        yield Line()

    @contextmanager
    def progress(self, text: str) -> Iterator[Line]:
        yield Line()

    def pause(self, seconds: float) -> None:
        """
        Raises:
            Cancelled: at once where it is, or when it becomes so.
        """
        if self._cancelled.wait(seconds):
            raise Cancelled

    def check(self) -> None:
        """
        Raises:
            Cancelled: it is.
        """
        if self._cancelled.is_set():
            raise Cancelled

    def adopt(self, process: subprocess.Popen[Any]) -> None:
        """Has `cancel` end this program too."""
        with self._lock:
            self._children.add(process)
            if self._cancelled.is_set():
                process.kill()

    def release(self, process: subprocess.Popen[Any]) -> None:
        with self._lock:
            self._children.discard(process)

    @contextmanager
    def child(self, process: subprocess.Popen[Any]) -> Iterator[None]:
        """`adopt` for the length of a block.

        Raises:
            Cancelled: in place of what the end of the program looked like.
        """
        self.adopt(process)
        try:
            yield
        except Exception:
            self.check()
            raise
        finally:
            self.release(process)
        self.check()

    def cancel(self) -> None:
        """Ends pauses and programs; whoever works on it gets `Cancelled`."""
        self._cancelled.set()
        with self._lock:
            for process in self._children:
                process.kill()
