"""The make targets as a user types them."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from tests.vast.kit import answers

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 180


def command(target: str, **variables: object) -> list[str]:
    given = [f"{name}={value}" for name, value in variables.items()]
    return ["make", "--old-file=install", target, *given]


def make(
    environment: Mapping[str, str], target: str, directory: Path = ROOT, **variables: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(target, **variables),
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def is_up(environment: Mapping[str, str]) -> bool:
    """Whether the service that gpu-up uses is ready."""
    return answers(environment["API_URL"] + "/health/ready")


class Running:
    """A target that runs in a process group of its own, as in a terminal, and is read line by line."""

    def __init__(self, environment: Mapping[str, str], target: str, **variables: object) -> None:
        self.lines: list[str] = []
        self._queue: Queue[str | None] = Queue()
        self.process = subprocess.Popen(
            command(target, **variables),
            cwd=ROOT,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        Thread(target=self._read, daemon=True).start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def until(self, text: str, seconds: float = SECONDS) -> None:
        """Returns with the line that holds `text`."""
        while True:
            try:
                line = self._queue.get(timeout=seconds)
            except Empty:
                raise AssertionError(f"no {text!r} within {seconds} s:\n{self.output}") from None
            assert line is not None, f"ended without {text!r}:\n{self.output}"
            if text in line:
                return

    def signal(self, number: signal.Signals) -> int:
        """Sends it to the whole group, as a terminal does; returns the exit code of make."""
        os.killpg(self.process.pid, number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(timeout=SECONDS)
        while self._queue.get(timeout=30) is not None:
            pass
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._queue.put(line)
        self._queue.put(None)
