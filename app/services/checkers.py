"""Processes that check lines of batches, so that the API goes on answering and every core has a share.

A checker has no connection to anything: it gets parts of files and what the API knows of the models, and gives back
what came of each line. It starts with the first part, and ends when it has none for a while or when its pipe ends, as
that of a killed API does.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import app
from app.config import Settings
from app.services.line_checks import CheckedLine, LinesOf, Part
from app.telemetry import logger

log = logger("batches")

IDLE_SECONDS = 60.0
MOST_DEATHS = 2
LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """A part to check, and the models that are known and that take messages as they are."""

    part: Part
    lines: LinesOf
    known: frozenset[str]
    take_messages: frozenset[str]


class CheckersDied(Exception):
    """As many processes died with a part as are given it; the text tells which lines it has."""


class Checkers:
    """At most `settings.batch_checkers` processes; `module` is what they run."""

    def __init__(
        self, module: str, settings: Settings, models: Callable[[], tuple[frozenset[str], frozenset[str]]]
    ) -> None:
        self._module = module
        self._settings = settings
        self._models = models
        self._room = asyncio.Semaphore(settings.batch_checkers)
        # Those without work, and since when; the last one worked last.
        self._idle: list[tuple[Process, float]] = []
        self._busy: set[Process] = set()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in (*self._busy, *(each for each, _ in self._idle))]

    async def check(self, part: Part, lines: LinesOf) -> list[CheckedLine]:
        """What came of each line of the part.

        Raises:
            CheckersDied: this part, or something else, killed one after the other.
        """
        async with self._room:
            for deaths in range(1, MOST_DEATHS + 1):
                process = await self._take()
                try:
                    checked = await _ask(process, Work(part, lines, *self._models()))
                except (ConnectionError, asyncio.IncompleteReadError):
                    code = await process.wait()
                    log.warning("a checker died", pid=process.pid, code=code, batch=lines.batch_id, deaths=deaths)
                    continue
                except BaseException:
                    # Its answer would be taken for that of the next part.
                    await _end(process)
                    raise
                finally:
                    self._busy.discard(process)
                self._idle.append((process, time.monotonic()))
                return checked
        first, last = part.lines[0][0], part.lines[-1][0]
        raise CheckersDied(f"{first:,} to {last:,}")

    async def end_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """Ends those that have had nothing to do for so long."""
        before = time.monotonic() - seconds
        ended = [process for process, since in self._idle if since <= before]
        self._idle = [(process, since) for process, since in self._idle if since > before]
        for process in ended:
            await _end(process)

    async def close(self) -> None:
        await self.end_idle(0)

    async def _take(self) -> Process:
        while self._idle:
            process, _ = self._idle.pop()
            if process.returncode is None:
                self._busy.add(process)
                return process
        process = await self._start()
        self._busy.add(process)
        return process

    async def _start(self) -> Process:
        root = str(Path(app.__file__).parents[1])
        path = os.environ.get("PYTHONPATH")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            stdin=PIPE,
            stdout=PIPE,
            # A terminal's Ctrl-C is for the API, which ends its checkers when it has ended its own work.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root},
        )
        log.info("a checker starts", pid=process.pid)
        assert process.stdin is not None
        with suppress(ConnectionError):
            process.stdin.write(pickle.dumps(self._settings))
        return process


async def _ask(process: Process, work: Work) -> list[CheckedLine]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(pickle.dumps(work))
    await process.stdin.drain()
    size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES))
    data = await process.stdout.readexactly(size)
    answer: list[CheckedLine] = pickle.loads(data)  # noqa: S301 - from the process that this one started
    return answer


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def serve(check: Callable[[Work], Any], source: Any, target: Any) -> None:
    """The other end of `_ask`, until the source ends."""
    with suppress(EOFError, BrokenPipeError):
        while True:
            work: Work = pickle.load(source)  # noqa: S301 - from the process that started this one
            answer = pickle.dumps(check(work))
            target.write(len(answer).to_bytes(LENGTH_BYTES))
            target.write(answer)
            target.flush()
