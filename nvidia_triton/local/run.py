"""The whole service in one terminal; `make run` starts it."""

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

from nvidia_triton.local import child
from nvidia_triton.local.banner import banner
from nvidia_triton.local.loaded import loaded
from nvidia_triton.local.process import Console, LocalError, caught_signals
from nvidia_triton.local.settings import LocalSettings, local_settings
from nvidia_triton.local.stack import Stack
from nvidia_triton.local.trial import PATIENCE_SECONDS, Trial, find_trial

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A `kill` of the whole process group reaches us directly and again through make; that is one request.
SAME_REQUEST_SECONDS = 0.5
PARENT_POLL_SECONDS = 0.3


@contextlib.contextmanager
def only_one(settings: LocalSettings) -> Iterator[None]:
    """Holds the checkout's lock, which the kernel drops with the process.

    Raises:
        LocalError: another runner holds it.
    """
    settings.local_dir.mkdir(parents=True, exist_ok=True)
    with settings.lock_file.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "?"
            raise LocalError(
                f"The stack of this checkout already runs (pid {pid}): use it, or stop it with Ctrl-C in its "
                f"terminal or `kill {pid}`."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


async def run(settings: LocalSettings, console: Console, parent: int | None) -> int:
    """Runs the stack until a signal, a failure or the end of `parent` or the terminal; returns the exit code."""
    started = time.monotonic()
    stack = Stack(settings, console)
    stop = StopRequest(stack)
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.by_signal)

    async def start() -> tuple[Trial, dict[str, str]]:
        await stack.start()
        return await trial_of(settings), await answering(settings)

    starting = asyncio.create_task(start())
    ending: set[asyncio.Future[Any]] = {
        asyncio.create_task(stop.requested.wait()),
        asyncio.create_task(console.broken.wait()),
        asyncio.create_task(parent_ends(parent)),
    }
    await asyncio.wait({*ending, starting, stack.failure}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done() and not starting.exception():
        seconds = time.monotonic() - started
        trial, models = starting.result()
        console.say(banner(settings, trial, seconds, models, colour=console.colour))
        await asyncio.wait({*ending, stack.failure}, return_when=asyncio.FIRST_COMPLETED)

    failed = stack.failure if stack.failure.done() else starting if starting.done() else None
    error = failed.exception() if failed else None
    stop.requested.set()
    for task in (starting, *ending):
        task.cancel()
    await asyncio.gather(starting, *ending, return_exceptions=True)
    console.say("Stopping. Ctrl-C again hurries." if not error else "Stopping the rest.")
    await stack.stop()
    if error is None:
        console.say("Stopped; the data stays in " + str(settings.local_dir))
        return 0
    if not isinstance(error, LocalError):
        raise error
    say_error(console, error)
    return 1


async def answering(settings: LocalSettings) -> dict[str, str]:
    """What answers for each model of the local server, as far as it says so."""
    if settings.triton is not None:
        with contextlib.suppress(httpx.HTTPError):
            return await loaded(settings.triton)
    return settings.llama_server.answering() if settings.llama_server else {}


async def trial_of(settings: LocalSettings) -> Trial:
    """What to try first; servers of one's own have a moment to answer."""
    nowhere_to_look = settings.no_fixed_server and not settings.servers_file.exists()
    try:
        return await find_trial(settings.api_url, 0.0 if nowhere_to_look else PATIENCE_SECONDS)
    except (httpx.HTTPError, ValueError) as error:
        return Trial(instead=f"{settings.api_url}/models/ cannot be read ({type(error).__name__}).")


class StopRequest:
    """The first signal stops, a later one hurries."""

    def __init__(self, stack: Stack) -> None:
        self.requested = asyncio.Event()
        self._stack = stack
        self._since = 0.0

    def by_signal(self) -> None:
        if self.requested.is_set() and time.monotonic() - self._since > SAME_REQUEST_SECONDS:
            self._stack.hurry()
        elif not self.requested.is_set():
            self._since = time.monotonic()
            self.requested.set()


async def parent_ends(parent: int | None) -> None:
    """Waits until the parent, a make, ends or gets a signal of its own.

    make answers a SIGINT or SIGHUP sent to it alone by waiting for its children without telling them; the one
    trace of it is that the handler of that signal is gone.
    """
    before = caught_signals(parent) if parent else None
    while parent is None or (os.getppid() == parent and caught_signals(parent) == before):  # noqa: ASYNC110
        await asyncio.sleep(PARENT_POLL_SECONDS)


def say_error(console: Console, error: LocalError) -> None:
    console.say(f"\x1b[1;31m{error}\x1b[0m" if console.colour else str(error))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--with-parent", action="store_true", help="stop when the parent process (make) ends")
    arguments = parser.parse_args()
    parent = os.getppid() if arguments.with_parent else None
    console = Console(sys.stdout.fileno())
    try:
        if parent is not None:
            child.die_with_parent(signal.SIGTERM, parent)
        settings = local_settings(os.environ)
        with only_one(settings):
            return asyncio.run(run(settings, console, parent))
    except LocalError as error:
        say_error(console, error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
