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
from app.services.lines import Prepare, lines_of
from app.services.loading import Check

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
    def __init__(self, database: Database, settings: Settings) -> None:
        self._store = BatchStore(database)
        self._settings = settings

    async def check(self, caller: Caller, endpoint: str, parts: AsyncIterator[bytes], prepare: Prepare) -> Checked:
        """The check that comes before a batch of these lines is loaded; stores nothing."""
        now = datetime.now(UTC)
        batch = {
            "id": NO_BATCH,
            "owner_id": caller.owner_id,
            "key_id": caller.key_id,
            "endpoint": endpoint,
            "created_at": now,
            "expires_at": now + timedelta(seconds=WINDOW_SECONDS),
            "wish": "",
        }
        check = Check(batch, caller, prepare, self._settings, None)
        await check.read(lines_of(parts, self._settings.max_body_bytes))
        if caller.key_id is not None and not check.problems:
            check.require_room(await self._store.pending_room(caller.key_id))
        return Checked(check.count, check.models, check.defects, check.problems, check.problem_count)
