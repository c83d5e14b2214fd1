"""Batches on their way to an end: progress, cancels, and the files that are written once all lines are final."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from pydantic_core import from_json

from app.background import Pace
from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.errors import DatabaseUnavailable
from app.queue.batch_work import CANCEL_LINES_AT_ONCE, BatchWork, LeaseLost
from app.queue.batches import BatchStore
from app.queue.bulk import statements_of
from app.queue.columns import RESULT, STORED_BYTES
from app.queue.files import FileStore, FileWriter
from app.queue.ticket import EXPIRED
from app.queue.uploads import UploadStore
from app.services.files import OUTPUT
from app.services.pages import SLICE_BYTES
from app.services.retention import oldest_kept
from app.telemetry import logger

log = logger("batches")

# Counting takes at most this share of the time.
COUNT_SHARE = 0.05
ROWS_AT_ONCE = 50
REMOVE_BATCH = 100
DEFECTS_LOGGED = 10
# Of the lines that failed, the batch names the first.
FAILURES_SHOWN = 10
TIDY_SECONDS = 60.0
# So long an upload that expired says so.
EXPIRED_KEPT = timedelta(days=1)

SIZES = f"""
SELECT batch_line, {STORED_BYTES} AS bytes FROM results
WHERE batch_id = $1 AND batch_line > $2 ORDER BY batch_line LIMIT {ROWS_AT_ONCE}
"""  # noqa: S608
LINES = f"""
SELECT {RESULT} FROM results
WHERE batch_id = $1 AND batch_line > $2 ORDER BY batch_line LIMIT $3
"""  # noqa: S608

Row = Mapping[str, Any]
# Of a batch and one of its results: the line, and whether it is for the output file (else the error file).
Render = Callable[[Row, Row], tuple[bool, bytes]]
# The line of the error file for a result that could not be rendered.
RenderDefective = Callable[[Row], bytes]


def batch_work(
    database: Database, settings: Settings, render: Render, render_defective: RenderDefective
) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    """All that batches need besides the running of their lines, by name; each is a task of its own, for ever."""
    return [
        ("batch progress", partial(_progress, BatchWork(database), settings.poll_seconds)),
        ("batch files", Finalizer(database, settings, render, render_defective).run),
        ("batch retention", partial(_tidy, database, settings.result_retention_days)),
    ]


async def _progress(store: BatchWork, every_seconds: float) -> None:
    """Cancels the lines of batches that are being cancelled, and counts what is done."""
    while True:
        pause = every_seconds
        with suppress(DatabaseUnavailable):
            while await store.cancel_lines() >= CANCEL_LINES_AT_ONCE:
                pass
            began = time.monotonic()
            await store.count()
            pause = max(pause, (time.monotonic() - began) / COUNT_SHARE)
        await asyncio.sleep(pause)


async def _tidy(database: Database, retention_days: float | None) -> None:
    """Removes files and uploads that expired, and what the retention takes of files and batches."""
    files, uploads, batches = FileStore(database), UploadStore(database), BatchStore(database)
    while True:
        with suppress(DatabaseUnavailable):
            oldest = oldest_kept(36_500 if retention_days is None else retention_days)
            while await files.remove(oldest, REMOVE_BATCH) >= REMOVE_BATCH:
                pass
            expired = datetime.now(UTC) - EXPIRED_KEPT
            while await uploads.remove(expired, REMOVE_BATCH) >= REMOVE_BATCH:
                pass
            while await batches.remove(oldest, REMOVE_BATCH) >= REMOVE_BATCH:
                pass
        await asyncio.sleep(TIDY_SECONDS)


class Finalizer:
    """Writes the files of batches whose lines are all final.

    Files and final status are one transaction under the batch's lease: whoever dies in between leaves nothing, and
    whoever outlived the lease commits nothing.
    """

    def __init__(
        self, database: Database, settings: Settings, render: Render, render_defective: RenderDefective
    ) -> None:
        self._database = database
        self._store = BatchWork(database)
        self._settings = settings
        self._render = render
        self._render_defective = render_defective

    async def run(self) -> None:
        """Finalizes until cancelled; the batch under way then is left to another dispatcher."""
        while True:
            with suppress(DatabaseUnavailable):
                while batch := await self._store.take_to_finalize(self._settings.lease_seconds):
                    await self._work(batch)
            await asyncio.sleep(self._settings.poll_seconds)

    async def _work(self, batch: Row) -> None:
        try:
            await self._store.hold(batch, self._finalize(batch), self._settings.lease_seconds)
        except LeaseLost:
            log.warning("another dispatcher finalizes the batch", batch=batch["id"])
        except (DatabaseUnavailable, asyncio.CancelledError):
            with suppress(DatabaseUnavailable):
                await self._store.give_back(batch, 0.0, count=False)
            raise
        except Exception:
            # Its lease runs out, and then it is tried again.
            log.exception("a defect of the dispatcher ended the finalizing of a batch", batch=batch["id"])

    async def _finalize(self, batch: Row) -> None:
        began = time.monotonic()
        counts = {True: 0, False: 0}
        shown: list[dict[str, Any]] = []
        prompt_tokens = completion_tokens = defects = 0
        expired = False
        name = f"batch_{batch['id'].hex}"
        async with self._database.transaction() as connection:
            files = {
                completed: FileWriter(
                    connection,
                    uuid7(),
                    batch["owner_id"],
                    OUTPUT,
                    f"{name}_{kind}.jsonl",
                    batch["output_seconds"],
                    batch["key_id"],
                )
                for completed, kind in ((True, "output"), (False, "error"))
            }
            pace = Pace()
            async for row in _lines(connection, batch):
                try:
                    completed, line = self._render(batch, row)
                except Exception:
                    # Tried again, it would fail again: one answer must not keep back all the others.
                    defects += 1
                    if defects <= DEFECTS_LOGGED:
                        log.exception(
                            "a defect of the service kept an answer out of a batch", batch=batch["id"], result=row["id"]
                        )
                    completed, line = False, self._render_defective(row)
                await files[completed].write(line)
                counts[completed] += 1
                if not completed and len(shown) < FAILURES_SHOWN:
                    shown.append(_failure(row["batch_line"], line))
                prompt_tokens += row["prompt_tokens"] or 0
                completion_tokens += row["completion_tokens"] or 0
                expired = expired or row["error_code"] == EXPIRED
                await pace.step()
            output, errors = await files[True].close(), await files[False].close()
            status = "completed"
            if batch["status"] == "cancelling":
                status = "cancelled"
            elif expired:
                status = "expired"
            await self._store.finish(
                connection,
                batch,
                status,
                (output["id"] if output else None, errors["id"] if errors else None),
                (counts[True], counts[False], prompt_tokens, completion_tokens),
                {"total": counts[False], "data": shown} if shown else None,
            )
        log.info(
            "batch ended",
            batch=batch["id"],
            status=status,
            completed=counts[True],
            failed=counts[False],
            defective=defects,
            seconds=round(time.monotonic() - began, 2),
        )


def _failure(number: int, line: bytes) -> dict[str, Any]:
    """What the batch itself says of a line in its error file."""
    document = from_json(line)
    error = document["error"] or document["response"]["body"]["error"]
    return {"line": number, "code": error["code"], "message": error["message"], "param": error.get("param")}


async def _lines(connection: Any, batch: Row) -> AsyncIterator[Row]:
    """The batch's results in the order of its file, few at a time, and few bytes."""
    last = 0
    while sizes := await connection.fetch(SIZES, batch["id"], last):
        for part in statements_of(sizes, ROWS_AT_ONCE, lambda row: row["bytes"], SLICE_BYTES):
            for row in await connection.fetch(LINES, batch["id"], last, len(part)):
                yield row
            last = part[-1]["batch_line"]
