"""What a batch's lines would be refused for, before anything of them is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from app.config import Settings
from app.db.engine import Database
from app.queue.batches import BatchStore
from app.services.batches import WINDOW_SECONDS
from app.services.callers import Caller
from app.services.checkers import Checkers
from app.services.line_checks import LineChecks, LinesOf
from app.services.line_gathering import Gathered
from app.services.line_reading import read
from app.services.lines import Prepare

NO_BATCH = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Checked:
    """`defects` are lines that would be stored as failed; `problems` the first of `problem_count` errors by line."""

    lines: int
    models: Mapping[str, int]
    defects: int
    problems: list[dict[str, Any]]
    problem_count: int


class BatchChecks:
    def __init__(self, database: Database, checkers: Checkers | None, settings: Settings) -> None:
        self._store = BatchStore(database)
        self._checkers = checkers
        self._settings = settings

    async def check(
        self, caller: Caller, endpoint: str, parts: AsyncIterator[bytes], size: int, prepare: Prepare
    ) -> Checked:
        """The check that comes before a batch of these lines, about `size` bytes, is loaded; stores nothing."""
        now = datetime.now(UTC)
        end = now + timedelta(seconds=WINDOW_SECONDS)
        longest = self._settings.max_body_bytes
        lines = LinesOf(NO_BATCH, endpoint, caller.owner_id, caller.key_id, now, end, "", caller, longest)
        checks = LineChecks(lines, prepare)
        gathered = Gathered(lines, checks, None)
        await read(parts, size, lines, checks, gathered, self._checkers)
        if caller.key_id is not None and not gathered.problems:
            gathered.require_room(await self._store.pending_room(caller.key_id))
        return Checked(gathered.count, gathered.models, gathered.defects, gathered.problems, gathered.problem_count)
