"""Sends one folder to an instance."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.ssh import SSH_FAILED, Connection, HostKeyChanged, KeyRefused, words
from nvidia_triton.vast.work import Line

TRIES = 4
PAUSE_SECONDS = 2.0
# rsync's exit codes for a connection that broke: another try goes on where this one stopped.
BROKEN = (10, 12, 30, 35, SSH_FAILED)
PROGRESS = re.compile(r"\s*(?P<bytes>[\d,.]+)\w?\s+(?P<percent>\d+)%\s+(?P<speed>\S+)\s+(?P<left>\S+)")


def send(connection: Connection, folder: Path, target: str, line: Line, left: Sequence[str] = ()) -> None:
    """Makes `target` on the instance equal to `folder`; what was sent of a file before is not sent again.

    Paths in `left`, which begin with a slash, are left as they are there.

    Raises:
        TargetError: rsync or SSH failed.
    """
    for attempt in range(1, TRIES + 1):
        code, errors = _send_once(connection, folder, target, line, left)
        if code == 0:
            return
        problem = connection.failure(SSH_FAILED if code in BROKEN else code, errors)
        if code not in BROKEN or isinstance(problem, KeyRefused | HostKeyChanged) or attempt == TRIES:
            raise _told(connection, folder, problem, errors)
        line.update(f"{folder.name}: the connection broke, going on with it")
        connection.context.work.pause(PAUSE_SECONDS)


def _send_once(connection: Connection, folder: Path, target: str, line: Line, left: Sequence[str]) -> tuple[int, str]:
    command = [
        "rsync",
        # Without owners: those of this machine mean nothing there.
        "-rlpt",
        "--delete",
        "--partial-dir=.rsync-partial",
        "--info=progress2",
        "--no-inc-recursive",
        "--timeout=60",
        "--exclude=__pycache__",
        *(f"--exclude={path}" for path in left),
        "-e",
        words(connection.options()),
        f"{folder}/",
        f"{connection.destination}:{target}/",
    ]
    environment = {**os.environ, "LC_ALL": "C"}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        # Its output is a pipe, so it ends soon after this process, however that one ends.
        with (
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment
            ) as process,
            connection.context.work.child(process),
        ):
            assert process.stdout is not None
            for said in _lines(process.stdout):
                if found := PROGRESS.match(said):
                    line.update(
                        f"sending {folder.name}: {found['percent']}%, {found['speed']}, {found['left']} left",
                        percent=float(found["percent"]),
                        bytes=int(re.sub(r"\D", "", found["bytes"])),
                    )
        errors.seek(0)
        return process.returncode, errors.read()


def _lines(output: IO[bytes]) -> Iterator[str]:
    """Progress is written over itself, with carriage returns."""
    rest = b""
    while chunk := os.read(output.fileno(), 4096):
        *lines, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from (line.decode(errors="replace") for line in lines)


def _told(connection: Connection, folder: Path, problem: TargetError, errors: str) -> TargetError:
    if isinstance(problem, KeyRefused | HostKeyChanged):
        return problem
    said = connection.context.settings.redact(errors.strip()).replace(f"{folder.parent}/", "")
    return TargetError(
        f"{folder.name} could not be sent to {connection.instance.name}: {said or problem}\nWhat arrived is kept: "
        "repeat the target to go on."
    )
