"""What batches need besides the running of their lines: progress, cancels, their files, and an end of what is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from app.config import LONGEST_DAYS, Settings
from app.db.engine import Database
from app.dispatch.batch_files import BatchFiles, Render, RenderDefective
from app.errors import DatabaseUnavailable
from app.queue.batch_work import CANCEL_LINES_AT_ONCE, BatchWork
from app.queue.batches import BatchStore
from app.queue.files import FileStore
from app.queue.uploads import UploadStore
from app.services.retention import oldest_kept

# Counting takes at most this share of the time.
COUNT_SHARE = 0.05
REMOVE_BATCH = 100
TIDY_SECONDS = 60.0
# So long an upload that expired says so.
EXPIRED_KEPT = timedelta(days=1)


def batch_work(
    database: Database, settings: Settings, render: Render, render_defective: RenderDefective
) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    """All that batches need besides the running of their lines, by name; each is a task of its own, for ever."""
    return [
        ("batch progress", partial(_progress, BatchWork(database), settings.poll_seconds)),
        ("batch files", BatchFiles(database, settings, render, render_defective).run),
        ("batch retention", partial(_tidy, database, settings)),
    ]


async def _progress(store: BatchWork, every_seconds: float) -> None:
    """Cancels the lines of batches that are being cancelled, and counts what is done."""
    count_again = 0.0
    while True:
        pause = every_seconds
        with suppress(DatabaseUnavailable):
            if await store.cancel_lines() >= CANCEL_LINES_AT_ONCE:
                pause = 0.0
            began = time.monotonic()
            if pause or began >= count_again:
                await store.count()
                now = time.monotonic()
                count_again = now + max(every_seconds, (now - began) / COUNT_SHARE)
                pause = pause and count_again - now
        await asyncio.sleep(pause)


async def _tidy(database: Database, settings: Settings) -> None:
    """Removes files and uploads that expired, and what the retention takes of files and batches."""
    files, uploads, batches = FileStore(database), UploadStore(database), BatchStore(database)
    while True:
        with suppress(DatabaseUnavailable):
            oldest = oldest_kept(settings.result_retention_days or LONGEST_DAYS)
            while await files.remove(oldest, REMOVE_BATCH) >= REMOVE_BATCH:
                pass
            expired = datetime.now(UTC) - EXPIRED_KEPT
            while await uploads.remove(expired, REMOVE_BATCH) >= REMOVE_BATCH:
                pass
            while await batches.remove(oldest, REMOVE_BATCH) >= REMOVE_BATCH:
                pass
        await asyncio.sleep(TIDY_SECONDS)
