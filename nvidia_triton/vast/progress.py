"""What a target says while it waits: one line that changes on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from nvidia_triton.vast.context import Instance

# Without a terminal, an unchanged state is said again this often.
REPEAT_SECONDS = 30.0


class Waiting:
    """A line with the state, the seconds since the start and the dollars so far."""

    def __init__(self, console: Console, status: Status | None) -> None:
        self._console = console
        self._status = status
        self._begin = time.monotonic()
        self._said = ""
        self._said_at = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def says(self, state: str, instance: Instance | None = None) -> None:
        money = f", {dollars(instance.spent)} so far" if instance else ""
        line = f"{state}  {self.seconds:.0f} s{money}"
        if self._status is not None:
            self._status.update(escape(line))
        elif state != self._said or time.monotonic() - self._said_at > REPEAT_SECONDS:
            self._said, self._said_at = state, time.monotonic()
            say(self._console, f"  {line}")


@contextmanager
def waiting(console: Console) -> Iterator[Waiting]:
    if not console.is_terminal:
        yield Waiting(console, None)
        return
    with console.status("") as status:
        yield Waiting(console, status)


def say(console: Console, text: str) -> None:
    """Prints text as it stands; long lines are left to the terminal, so that they can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def done(console: Console, step: str, text: str) -> None:
    console.print(f"[green]✓[/green] [bold]{escape(step)}[/bold]  {escape(text)}", highlight=False, soft_wrap=True)


def dollars(amount: float) -> str:
    return f"${amount:.3f}" if amount < 1 else f"${amount:.2f}"
