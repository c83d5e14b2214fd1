"""What lists and search cost those who submit and settle: the indexes they need, and the pass that fills theirs."""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import AsyncExitStack

import asyncpg
import psutil

from app.config import Settings
from app.db.engine import open_database
from app.queue.words import WordStore
from bench.figure import Figure
from bench.history import AT_ONCE, Side
from bench.rows import filled_database
from bench.stack import Bench

ROWS, TURNS = 50_000, 250
INDEXES = (
    *("results_by_owner", "results_by_status", "results_by_model", "results_by_client_reference", "results_by_end"),
    *("results_failed_by_model", "results_failed_by_context"),
)
STEPS = ("submit 20", "claim 20", "settle 20")
# So many tickets get their words anew.
WORDED, WORDED_AT_ONCE = 5_000, 200
WORDS_AGAIN = f"""
WITH newest AS MATERIALIZED (
    SELECT id, completed_at FROM results WHERE completed_at IS NOT NULL AND created_at < now() - interval '1 hour'
    ORDER BY completed_at DESC, id DESC LIMIT {WORDED} + 1
), removed AS (
    DELETE FROM ticket_words WHERE result_id IN (SELECT id FROM newest)
)
UPDATE ticket_words_progress SET (completed_at, result_id) =
    (SELECT completed_at, id FROM newest ORDER BY completed_at, id LIMIT 1)
"""


async def list_indexes(bench: Bench) -> Figure:
    urls = [await filled_database(bench.postgres.url, name, ROWS) for name in ("indexed", "bare")]
    connection = await asyncpg.connect(urls[1])
    await connection.execute(f"DROP INDEX IF EXISTS {', '.join(INDEXES)}")
    await connection.close()
    async with AsyncExitStack() as stack:
        sides = []
        for url in urls:
            settings = Settings(database_url=url, triton_urls=bench.settings.triton_urls)
            side = Side(await stack.enter_async_context(open_database(settings)), settings)
            await side.prepare()
            sides.append(side.probes())
        times: list[dict[str, list[float]]] = [{name: [] for name in STEPS} for _ in sides]
        gc.disable()
        for turn in range(TURNS):
            # Each of them goes first in every second turn.
            for place in (0, 1) if turn % 2 else (1, 0):
                for name in STEPS:
                    started = time.perf_counter()
                    await sides[place][name]()
                    times[place][name].append(time.perf_counter() - started)
        gc.enable()
    medians = [{name: statistics.median(each) for name, each in side.items()} for side in times]
    indexed, bare = (sum(side[name] for name in ("submit 20", "settle 20")) for side in medians)
    words = await cpu_of_words(urls[0], bench)
    return Figure(
        f"submit and settle of {AT_ONCE} tickets, with the {len(INDEXES)} indexes that lists and search need",
        indexed / bare,
        "≤ 1.15",
        indexed / bare <= 1.15,
        f"{indexed * 1000:.2f} ms; the words of 1,000 tickets: {words:.2f} s of CPU",
        f"{bare * 1000:.2f} ms without",
        {"seconds": medians, "words_cpu_seconds_per_1000": words},
    )


async def cpu_of_words(url: str, bench: Bench) -> float:
    """Of Postgres, for the words of 1,000 tickets."""
    settings = Settings(database_url=url, triton_urls=bench.settings.triton_urls, database_pool_size=2)
    async with open_database(settings) as database:
        async with database.hot() as connection:
            await connection.execute(WORDS_AGAIN)
            backend = psutil.Process(connection.get_server_pid())
        store, added = WordStore(database), 0
        before = backend.cpu_times()
        while number := await store.add(WORDED_AT_ONCE):
            added += number
        after = backend.cpu_times()
    assert added >= WORDED
    seconds: float = after.user - before.user + after.system - before.system
    return seconds / added * 1000
