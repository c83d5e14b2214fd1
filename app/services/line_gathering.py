"""The lines of a batch put together again in the order of the file: what depends on all of them is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from app.db.ids import uuid7
from app.queue.batch_lines import LineSpool, SpooledLine, ranked
from app.services.batches import WINDOW_SECONDS
from app.services.line_checks import CheckedLine, LineChecks, LinesOf
from app.services.lines import LineError
from app.telemetry import logger

log = logger("batches")

MOST_LINES = 50_000
ERRORS_SHOWN = 100
LONGEST_VALUE_SHOWN = 60
# Until this share of the window is left, everything that is sent by itself goes first.
LAST_SHARE = 1 / 12
NOT_STORABLE = "Postgres cannot store this request; the cause is in the service's log. No other line was affected."
DEFECTS_LOGGED = 10

Row = Mapping[str, Any]


class AllLinesDefective(Exception):
    """What no line gets past is no line's fault."""


class Gathered:
    """What the lines of a batch came to so far; what is to be stored is in the spool, if there is one."""

    def __init__(self, lines: LinesOf, checks: LineChecks, spool: LineSpool | None) -> None:
        self._batch = lines.batch_id
        self._checks = checks
        self._spool = spool
        self._rank = lines.created_at + timedelta(seconds=WINDOW_SECONDS * (1 - LAST_SHARE))
        # A place for each beginning that chats share: those with the same one are run together, so that the engine has
        # it in its cache. There are no more than lines, so all places are within 50 milliseconds.
        self._places: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._defect: str | None = None
        self.count = self.defects = 0
        self.models: dict[str, int] = {}
        self.problems: list[dict[str, Any]] = []
        self.problem_count = 0

    @property
    def full(self) -> bool:
        """Whether there are more lines than a batch may have."""
        return self.count > MOST_LINES

    def take(self, line: CheckedLine) -> None:
        """The next line of the file."""
        self.count += 1
        if self.full:
            message = f"The file has more than {MOST_LINES:,} lines; make several batches of it."
            self.refuse(None, LineError("too_many_lines", message))
            return
        if line.custom_id is not None:
            first = self._seen.setdefault(line.custom_id, line.number)
            if first != line.number:
                self.refuse(line.number, _duplicate(line.custom_id, first, line.number))
                return
        if line.error is not None:
            self.refuse(line.number, LineError(*line.error))
            return
        if line.defect is not None:
            self._note(line.number, line.defect)
        else:
            self.models[line.model] = self.models.get(line.model, 0) + 1
        if self._spool is not None and not self.problems:
            self._spool.add(line.number, line.named, line.context, self._ranked(line))

    def refuse(self, number: int | None, error: LineError) -> None:
        self.problem_count += 1
        if len(self.problems) < ERRORS_SHOWN:
            self.problems.append({"line": number, "code": error.code, "message": error.message, "param": error.param})

    def require_room(self, room: tuple[int, int] | None) -> None:
        """Refuses all where they are more than the key's `room`: how many tickets it may have pending, and has."""
        if room is not None and self.count + room[1] > room[0]:
            most, pending = room
            message = f"The key may have {most:,} tickets pending, {pending:,} are, and these are {self.count:,} more."
            self.refuse(None, LineError("pending_limit_reached", message))

    def raise_if_all_defective(self) -> None:
        """
        Raises:
            AllLinesDefective: the batch should be tried again as a whole.
        """
        if self._defect is not None and self.defects == self.count:
            raise AllLinesDefective(self._defect)

    def refused_row(self, line: SpooledLine, error: Exception) -> tuple[bytes, bytes]:
        """What is stored of a line that Postgres refuses: that it failed."""
        self.defects += 1
        log.error("postgres refused a line", batch=self._batch, line=line.number, error=repr(error))
        custom_id = next(name for name, number in self._seen.items() if number == line.number)
        failed = self._checks.failed(line.number, custom_id, line.model, uuid7(), NOT_STORABLE)
        return failed.context, self._ranked(failed)

    def _note(self, number: int, defect: str) -> None:
        self.defects += 1
        self._defect = defect
        if self.defects <= DEFECTS_LOGGED:
            log.error(
                f"a defect of the service or of a chat template failed a line: {defect.rstrip()}\nThe line:",
                batch=self._batch,
                line=number,
            )

    def _ranked(self, line: CheckedLine) -> bytes:
        place = self._places.setdefault(line.beginning, len(self._places)) if line.beginning else 0
        return ranked(line.result, self._rank + timedelta(microseconds=place))


def _duplicate(custom_id: str, first: int, number: int) -> LineError:
    shown = custom_id[:LONGEST_VALUE_SHOWN]
    return LineError(
        "duplicate_custom_id",
        f"custom_id: {shown!r} is on line {first} and again on line {number}; each line needs its own",
        "custom_id",
    )
