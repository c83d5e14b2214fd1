"""Loads one model and shows how it goes; a load outlives the connection it was asked for through."""

from __future__ import annotations

import time
from threading import Thread

import httpx

from nvidia_triton.vast.control import Control, LoadFailed
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.forward import Forward
from nvidia_triton.vast.remote_scripts import GROWTH
from nvidia_triton.vast.ssh import Connection

LOOK_SECONDS = 0.2
GROWTH_SECONDS = 4.0
# How long Triton, or the way to it, may be gone during a load.
LOST_SECONDS = 60.0
LOG_CHARS = 100


def load(connection: Connection, forward: Forward, control: Control, name: str) -> float:
    """Returns the seconds that the load took.

    Raises:
        LoadFailed: with the engine's reason.
        TargetError: it took too long, or Triton is gone.
    """
    forward.ensure()
    began = time.monotonic()
    minutes = connection.context.definition.deadline_minutes.load
    attempt = _Attempt(control, name, minutes * 60)
    attempt.start()
    work = connection.context.work
    with work.progress(f"loading {name}") as line:
        growth = _Growth(connection)
        while attempt.is_alive():
            attempt.join(LOOK_SECONDS)
            work.check()
            growth.look()
            text = f"loading {name}, {time.monotonic() - began:.0f} s{growth.text}"
            line.update(text, bytes=growth.bytes, moved=growth.text)
        work.check()
        if isinstance(attempt.error, httpx.TransportError):
            line.update(f"loading {name}: the connection broke, Triton goes on")
            _follow(connection, forward, control, name, began + minutes * 60)
        elif attempt.error is not None:
            raise attempt.error
    return time.monotonic() - began


class _Attempt(Thread):
    """The request, in a thread that an interrupt of the target need not wait for."""

    def __init__(self, control: Control, name: str, seconds: float) -> None:
        super().__init__(daemon=True)
        self._control = control
        self._name = name
        self._seconds = seconds
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._control.load(self._name, self._seconds)
        except (TargetError, httpx.HTTPError) as error:
            self.error = error


class _Growth:
    """What the instance has downloaded so far, looked at every few seconds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._next = time.monotonic() + GROWTH_SECONDS
        self.bytes: int | None = None
        self.text = ""

    def look(self) -> None:
        if time.monotonic() >= self._next:
            try:
                size, _, line = self._connection.run(GROWTH, timeout=20).partition("\n")
                line = self._connection.context.settings.redact(line)
                self.bytes = int(size) * 1_000_000
                self.text = f", {int(size) / 1000:,.1f} GB of weights on the disk; {line[:LOG_CHARS]}".rstrip("; ")
            except (TargetError, ValueError):
                self.text = ", the instance does not answer at the moment"
            self._next = time.monotonic() + GROWTH_SECONDS


def _follow(connection: Connection, forward: Forward, control: Control, name: str, deadline: float) -> None:
    """Waits for the end of a load that somebody asked for before."""
    lost = time.monotonic() + LOST_SECONDS
    while True:
        try:
            forward.ensure()
            state = control.state(name)
        except (TargetError, httpx.HTTPError):
            if time.monotonic() > lost:
                raise TargetError(
                    f"Triton does not answer any more since it loads {name}: `make check-logs-tritonserver` may say "
                    "why; `make run-tritonserver` starts it again."
                ) from None
        else:
            if state.ready:
                return
            if not state.busy:
                raise LoadFailed(state.reason or "Triton was restarted during the load")
            if time.monotonic() > deadline:
                raise TargetError(
                    f"{name} is not loaded in time. Triton goes on: repeat this target to wait for it, or allow more "
                    "minutes with `deadline_minutes.load` in the definition."
                )
            lost = time.monotonic() + LOST_SECONDS
        connection.context.work.pause(LOOK_SECONDS)


def engine_reason(said: str) -> str:
    """Without the trace that the Python backend appends."""
    return said.partition("\n\nAt:")[0].strip()
