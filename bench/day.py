"""A day of tickets at speed, through the service's own statements: python -m bench.day [TICKETS]

Tickets are submitted, claimed, settled and, once a quarter of the day has passed, removed. What it takes is written
down a hundred times on the way.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from rich.console import Console

from app.config import Settings
from app.db.engine import Database, open_database
from app.db.ids import time_of, uuid7
from app.db.tables.contexts import Prompt
from app.queue.store import QueueStore
from app.queue.ticket import Outcome, Settlement, Status, Submission
from bench.figure import Figure, show, write
from bench.plots import Series, panels_plot
from bench.rows import ANSWER, PARAMETERS
from tests.conftest import alembic
from tests.postgres_server import start_postgres

TICKETS = 5_000_000
SAMPLES = 100
AT_ONCE, MOST_WAITING = 100, 2000
DISPATCHERS = 2
REMOVED_AT_ONCE = 1000
# A day passes in less than an hour, so autovacuum looks as much more often.
POSTGRES = {"shared_buffers": "512MB", "autovacuum_naptime": "1s"}
LOOK = """
SELECT pg_table_size('results') AS table_bytes, pg_indexes_size('results') AS index_bytes,
       pg_relation_size('results_claim') AS claim_index_bytes, s.n_dead_tup AS dead, s.n_live_tup AS live,
       s.autovacuum_count AS vacuums, s.total_autovacuum_time / 1000 AS vacuum_seconds,
       s.n_tup_hot_upd::float8 / greatest(1, s.n_tup_upd) AS hot_share
FROM pg_stat_user_tables s WHERE relname = 'results'
"""
Sample = dict[str, float]


class Day:
    def __init__(self, database: Database, tickets: int, console: Console) -> None:
        self._database = database
        self._store = QueueStore(database)
        self._tickets = tickets
        self._console = console
        self._submitted = self._settled = 0
        # Of each statement that submitted, the first id: what is older than a quarter of the day goes.
        self._ids: deque[UUID] = deque(maxlen=tickets // 4 // AT_ONCE)
        self._claims: list[float] = []
        self.samples: list[Sample] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as work:
            work.create_task(self._submit())
            work.create_task(self._tidy())
            for _ in range(DISPATCHERS):
                work.create_task(self._dispatch())
            work.create_task(self._look())

    @property
    def _over(self) -> bool:
        return self._settled >= self._tickets

    async def _submit(self) -> None:
        while self._submitted < self._tickets:
            if self._submitted - self._settled >= MOST_WAITING:
                await asyncio.sleep(0.005)
                continue
            tickets = [_ticket() for _ in range(AT_ONCE)]
            await self._store.submit(tickets)
            self._ids.append(tickets[0].id)
            self._submitted += AT_ONCE

    async def _dispatch(self) -> None:
        slots = [("m1", "gpu1:8001", None)] * AT_ONCE
        while not self._over:
            started = time.perf_counter()
            claims = (await self._store.claim(slots, lease_seconds=60, dispatcher="bench")).claims
            if not claims:
                await asyncio.sleep(0.005)
                continue
            self._claims.append(time.perf_counter() - started)
            await self._store.settle(
                [
                    Settlement(each.id, each.token, Status.COMPLETED, Outcome.COMPLETED, each.server, ANSWER)
                    for each in claims
                ]
            )
            self._settled += len(claims)

    async def _tidy(self) -> None:
        """As the dispatcher's housekeeping, each minute of the day."""
        after, due = UUID(int=0), 0
        while not self._over:
            if self._settled < due:
                await asyncio.sleep(0.05)
                continue
            due = self._settled + self._tickets // 1440
            await self._store.compact_usage()
            if len(self._ids) < (self._ids.maxlen or 0):
                continue
            oldest = self._ids[0]
            while await self._store.remove(oldest, 0, REMOVED_AT_ONCE) == REMOVED_AT_ONCE:
                pass
            while True:
                looked, _ = await self._store.remove_contexts(after, oldest, REMOVED_AT_ONCE)
                after = looked[-1] if len(looked) == REMOVED_AT_ONCE else UUID(int=0)
                if len(looked) < REMOVED_AT_ONCE:
                    break

    async def _look(self) -> None:
        began = time.perf_counter()
        for number in range(1, SAMPLES + 1):
            while not self._claims or self._settled < self._tickets * number // SAMPLES:  # noqa: ASYNC110 - others do the work
                await asyncio.sleep(0.02)
            async with self._database.hot() as connection:
                row = await connection.fetchrow(LOOK)
            times, self._claims = sorted(self._claims), []
            self.samples.append(
                {
                    "settled": self._settled,
                    "seconds": time.perf_counter() - began,
                    "claim_median_ms": statistics.median(times) * 1000,
                    "claim_p99_ms": times[len(times) * 99 // 100] * 1000,
                    **{name: float(value) for name, value in row.items()},
                }
            )
            self._console.print(" ".join(f"{name} {value:,.4g}" for name, value in self.samples[-1].items()))


def _ticket() -> Submission:
    id_ = uuid7()
    now = time_of(id_)
    return Submission(id_, uuid7(), "m1", PARAMETERS, 0, now, now, prompt=Prompt("Why is the sky blue? " * 10))


async def day(tickets: int, console: Console) -> list[Sample]:
    with tempfile.TemporaryDirectory(prefix="bench-day-") as name:
        postgres = start_postgres(Path(name) / "postgres", fsync=True, settings=POSTGRES)
        try:
            assert alembic(postgres.url, "upgrade", "head").returncode == 0
            settings = Settings(database_url=postgres.url, triton_urls=("127.0.0.1:1",))
            async with open_database(settings) as database:
                simulated = Day(database, tickets, console)
                await simulated.run()
        finally:
            postgres.stop()
    return simulated.samples


def day_plot(tickets: int, samples: Sequence[Sample]) -> str:
    megabyte = 1024 * 1024
    vacuumed = [0.0, *(sample["vacuum_seconds"] for sample in samples)]
    panels = [
        Series(f"A claim of {AT_ONCE}, median", " ms", [sample["claim_median_ms"] for sample in samples]),
        Series("Table and indexes of the results", " MB", [
            (sample["table_bytes"] + sample["index_bytes"]) / megabyte for sample in samples
        ]),
        Series("Index of claims", " MB", [sample["claim_index_bytes"] / megabyte for sample in samples]),
        Series("Dead rows", "", [sample["dead"] for sample in samples]),
        Series("Vacuum, each hundredth of the day", " s", [b - a for a, b in pairwise(vacuumed)]),
    ]  # fmt: skip
    return panels_plot(f"A day of {tickets:,} tickets", panels, ("first ticket", f"{tickets:,} tickets"))


def main() -> None:
    tickets = int(sys.argv[1]) if len(sys.argv) > 1 else TICKETS
    console = Console()
    samples = asyncio.run(day(tickets, console))
    quarter = SAMPLES // 4
    early, late = (
        statistics.median(s["claim_median_ms"] for s in part) for part in (samples[:quarter], samples[-quarter:])
    )
    figure = Figure(
        f"claim of {AT_ONCE} in the last quarter of a day of {tickets:,}",
        late / early,
        "≤ 1.10",
        late / early <= 1.1,
        f"{late:.2f} ms",
        f"{early:.2f} ms in the first quarter",
        {"samples": samples},
    )
    show([figure])
    write({"day": figure}, day_plot(tickets, samples))


if __name__ == "__main__":
    main()
