"""What the targets print: sentences, finished steps, and while they wait one line that changes on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from nvidia_triton.vast.costs import dollars
from nvidia_triton.vast.work import Line, Work

# Without a terminal, an unchanged state is said again this often, and a progress so often at all.
REPEAT_SECONDS = 30.0
PLAIN_LINE_SECONDS = 15.0


class PrintedWork(Work):
    """The work of a target: it says all on a console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def say(self, text: str) -> None:
        say(self.console, text)

    def pause(self, seconds: float) -> None:
        # A signal ends a target wherever it is, and in the middle of a lock, as the library waits, it breaks that.
        time.sleep(seconds)
        self.check()

    def done(self, step: str, text: str) -> None:
        text = f"[green]✓[/green] [bold]{escape(step)}[/bold]  {escape(text)}"
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def waiting(self) -> Iterator[Line]:
        with self._status("") as status:
            yield _Waiting(self.console, status)

    @contextmanager
    def progress(self, text: str) -> Iterator[Line]:
        with self._status(text) as status:
            yield _Progress(self.console, status)

    @contextmanager
    def _status(self, text: str) -> Iterator[Status | None]:
        if not self.console.is_terminal:
            yield None
            return
        with self.console.status(text) as status:
            yield status


class _Waiting(Line):
    """A line with the state, the seconds since the start and the dollars so far."""

    def __init__(self, console: Console, status: Status | None) -> None:
        super().__init__()
        self._console = console
        self._status = status
        self._said = ""
        self._said_at = 0.0

    def says(self, state: str, spent: float | None = None) -> None:
        money = "" if spent is None else f", {dollars(spent)} so far"
        line = f"{state}  {self.seconds:.0f} s{money}"
        if self._status is not None:
            self._status.update(escape(line))
        elif state != self._said or time.monotonic() - self._said_at > REPEAT_SECONDS:
            self._said, self._said_at = state, time.monotonic()
            say(self._console, f"  {line}")


class _Progress(Line):
    """One line that changes on a terminal, and now and then a line elsewhere."""

    def __init__(self, console: Console, status: Status | None) -> None:
        super().__init__()
        self._console = console
        self._status = status
        self._printed = time.monotonic()

    def update(self, text: str, *, percent: float | None = None, bytes: int | None = None, moved: str = "") -> None:
        if self._status is not None:
            self._status.update(escape(text))
        elif time.monotonic() - self._printed >= PLAIN_LINE_SECONDS:
            self._printed = time.monotonic()
            say(self._console, text)


def say(console: Console, text: str) -> None:
    """Prints text as it stands; long lines are left to the terminal, so that they can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
