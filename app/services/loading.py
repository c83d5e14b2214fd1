"""From the file of a batch to its tickets: every line is checked first, then all are stored or none is.

Runs in the API processes, which have the models' chat templates. A batch whose loader died is taken by another one. The
lines of a large file are checked in processes of their own, those of a small one here: a process takes longer to start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from app.config import Settings
from app.db.engine import Database
from app.errors import AppError, DatabaseUnavailable, FileNotFound
from app.queue.batch_lines import LineSpool
from app.queue.batch_work import BatchWork, LeaseLost
from app.queue.batches import BatchStore
from app.services.callers import Caller
from app.services.checkers import Checkers
from app.services.files import Files
from app.services.keys import Keys
from app.services.line_checks import LineChecks, LinesOf
from app.services.line_gathering import Gathered
from app.services.line_reading import read
from app.services.lines import LineError, Prepare
from app.telemetry import logger
from app.telemetry.metrics import SUBMITTED, of_model

log = logger("batches")

MOST_TRIES = 10
TRY_AGAIN_SECONDS = 5.0

Row = Mapping[str, Any]


class Loader:
    def __init__(
        self,
        database: Database,
        files: Files,
        prepare: Prepare,
        checkers: Checkers | None,
        arrived: asyncio.Event,
        settings: Settings,
    ) -> None:
        """Without `checkers`, all lines are checked here."""
        self._store = BatchWork(database)
        self._batches = BatchStore(database)
        self._keys = Keys(database)
        self._files = files
        self._prepare = prepare
        self._checkers = checkers
        self._arrived = arrived
        self._settings = settings

    async def run(self) -> None:
        """Loads batches until cancelled; the one under way then is left to another process."""
        while True:
            self._arrived.clear()
            with suppress(DatabaseUnavailable):
                while batch := await self._store.take_to_load(self._settings.lease_seconds):
                    await self._work(batch)
            if self._checkers is not None:
                await self._checkers.end_idle()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_seconds):
                    await self._arrived.wait()

    async def _work(self, batch: Row) -> None:
        if batch["tries"] > MOST_TRIES:
            await self._refuse(batch, [_internal()], 1)
            return
        try:
            await self._store.hold(batch, self._load(batch), self._settings.lease_seconds)
        except LeaseLost:
            log.warning("another process loads the batch", batch=batch["id"])
        except (DatabaseUnavailable, asyncio.CancelledError):
            with suppress(DatabaseUnavailable):
                await self._store.give_back(batch, 0.0, count=False)
            raise
        except Exception:
            log.exception("a defect of the service ended the loading of a batch", batch=batch["id"])
            await self._store.give_back(batch, TRY_AGAIN_SECONDS, count=True)

    async def _load(self, batch: Row) -> None:
        started = time.monotonic()
        lines = await self._lines_of(batch)
        checks = LineChecks(lines, self._prepare)
        with LineSpool() as spool:
            gathered = Gathered(lines, checks, spool)
            try:
                file = await self._files.get(Caller(batch["owner_id"]), batch["input_file_id"])
                await read(self._files.content(file), file["bytes"], lines, checks, gathered, self._checkers)
            except DatabaseUnavailable:
                raise
            except AppError as error:
                # The file is gone.
                gathered.refuse(None, LineError(FileNotFound.code, error.detail, "input_file_id"))
            if not gathered.problems:
                gathered.raise_if_all_defective()
                await self._require_room(batch, gathered)
            checked = time.monotonic()
            if gathered.problems:
                log.info("batch refused", batch=batch["id"], problems=gathered.problem_count)
                await self._refuse(batch, gathered.problems, gathered.problem_count)
                return
            await self._store.load(batch, spool, gathered.refused_row)
        for model, count in gathered.models.items():
            of_model(SUBMITTED, model).inc(count)
        log.info(
            "batch loaded",
            batch=batch["id"],
            lines=gathered.count,
            defective=gathered.defects,
            check_seconds=round(checked - started, 2),
            store_seconds=round(time.monotonic() - checked, 2),
        )

    async def _lines_of(self, batch: Row) -> LinesOf:
        return LinesOf(
            batch["id"],
            batch["endpoint"],
            batch["owner_id"],
            batch["key_id"],
            batch["created_at"],
            batch["expires_at"],
            batch["wish"],
            await self._caller(batch),
            self._settings.max_body_bytes,
        )

    async def _caller(self, batch: Row) -> Caller:
        """On whose behalf its lines are sent: bounded to models as the key is that made it."""
        if batch["key_id"] is None:
            return Caller(batch["owner_id"])
        return await self._keys.bounds(batch["key_id"])

    async def _require_room(self, batch: Row, gathered: Gathered) -> None:
        if batch["key_id"] is not None:
            gathered.require_room(await self._batches.pending_room(batch["key_id"]))

    async def _refuse(self, batch: Row, problems: list[dict[str, Any]], count: int) -> None:
        await self._store.refuse(batch, {"total": count, "data": problems})


def _internal() -> dict[str, Any]:
    message = "The service failed on this batch as often as it tried to load it. The cause is in its log."
    return {"line": None, "code": "internal_error", "message": message, "param": None}
