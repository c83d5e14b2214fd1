"""The last log lines of this process, held until somebody takes them away to where they are kept."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

# Lines that nobody has taken yet; of more, the oldest are dropped.
MOST_HELD = 1000
LONGEST_CHARS = 4000
FORMAT = logging.Formatter()


@dataclass(frozen=True, slots=True)
class Line:
    """`level` as logging has it; `message` with the end of a traceback where there is one."""

    at: datetime
    level: int
    logger: str
    message: str


class Ring(logging.Handler):
    """Takes lines from `level` on. It does no I/O and raises nothing, in whichever thread a line is written."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._held: deque[Line] = deque()
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info:
                trace = FORMAT.formatException(record.exc_info)
                text = f"{text[: LONGEST_CHARS // 4]}\n{trace[-LONGEST_CHARS // 2 :]}"
            at = datetime.fromtimestamp(record.created, UTC)
            self.add(Line(at, record.levelno, record.name.removeprefix("tickets."), storable(text)))
        except Exception:
            # A line that cannot be written down is told of on stderr by the other handler.
            self.dropped += 1

    def add(self, line: Line) -> None:
        if len(self._held) >= MOST_HELD:
            self._held.popleft()
            self.dropped += 1
        self._held.append(line)

    def take(self, most: int) -> list[Line]:
        """The oldest lines, which are held no longer."""
        return [self._held.popleft() for _ in range(min(most, len(self._held)))]

    def give_back(self, lines: Sequence[Line]) -> None:
        """Lines that could not be kept, as far as there is room beside those that came since."""
        room = max(0, MOST_HELD - len(self._held))
        self.dropped += max(0, len(lines) - room)
        self._held.extendleft(reversed(lines[len(lines) - min(room, len(lines)) :]))


def storable(text: str) -> str:
    """As Postgres takes it, and not too long."""
    return text[:LONGEST_CHARS].encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")
