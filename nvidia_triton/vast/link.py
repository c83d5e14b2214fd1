"""One run of ssh that forwards ports, for those that keep a tunnel up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

from nvidia_triton.vast.forward import ALIVE_SECONDS, HOLD_OPEN, SILENT, UP, UP_SECONDS
from nvidia_triton.vast.ssh import SSH_FAILED, Connection

EXIT_SECONDS = 5.0


async def hold(
    connection: Connection,
    ports: Mapping[int, int],
    stop: asyncio.Event,
    *,
    up: Callable[[], None],
    watch: Callable[[], Awaitable[None]] | None = None,
    bind: str = "127.0.0.1",
) -> tuple[bool, str]:
    """From the start of ssh to its end, which `stop` or a cancellation brings too; nothing of it is left then.

    `up` is called once the forwards stand; `watch` runs from then on. Returns whether they stood, and why ssh ended,
    empty where it was stopped.
    """
    process = await asyncio.create_subprocess_exec(
        *connection.forward_command(ports, HOLD_OPEN, ALIVE_SECONDS, bind=bind),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    errors: list[str] = []
    stood = False
    assert process.stdout is not None
    reader = asyncio.create_task(_collect(process, errors))
    first = asyncio.create_task(process.stdout.readline())
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait()), asyncio.create_task(process.wait())]
    stopped, _ = tasks
    try:
        await asyncio.wait({first, stopped}, timeout=UP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        stood = first.done() and first.result().decode().strip() == UP
        if stood:
            up()
            if watch is not None:
                tasks.append(asyncio.create_task(_watching(watch)))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in (first, *tasks):
            task.cancel()
        await _end(process)
        await asyncio.gather(reader, first, *tasks, return_exceptions=True)
    problem = "" if stop.is_set() else str(connection.failure(SSH_FAILED, "\n".join(errors) or SILENT))
    return stood, problem


async def _watching(watch: Callable[[], Awaitable[None]]) -> None:
    await watch()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Also in a task that is cancelled once more meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(EXIT_SECONDS):
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def _collect(process: asyncio.subprocess.Process, errors: list[str]) -> None:
    """Keeps what ssh says, each line once: it complains about every connection while Triton is down."""
    assert process.stderr is not None
    while line := await process.stderr.readline():
        text = line.decode(errors="replace").rstrip()
        if text and text not in errors and "open failed" not in text:
            errors.append(text)
