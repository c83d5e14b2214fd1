"""What a long history costs: each statement that looks at results or at lists, with millions settled and with few."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from app.config import Settings
from app.db.engine import Database, open_database
from app.db.ids import lowest_at, time_of, uuid7
from app.queue.backlog import read_backlog
from app.queue.batches import BatchStore
from app.queue.conversations import ConversationStore
from app.queue.files import FileStore
from app.queue.store import QueueStore
from app.queue.ticket import Outcome, Settlement, Status, Submission
from app.services.callers import EVERYBODY, Caller, Scope
from app.services.comparisons import Comparisons
from app.services.contexts import Contexts
from app.services.pages import Window
from app.services.results import GET, Filters, Results
from app.services.usage import GroupBy, Usage
from bench.figure import Figure
from bench.rows import ANSWER, DAYS, PARAMETERS, filled_database
from bench.stack import Bench

FEW = 10_000
TURNS = 60
LISTED, AT_ONCE, REMOVED = 20, 20, 20
PAGE = Window(limit=LISTED)
ME = Caller(0, scopes=frozenset(Scope))
# Within what the least of both databases has.
CUT_DAYS = DAYS - 10
Probe = Callable[[], Awaitable[Any]]


class Side:
    """The service's own statements on one of the databases."""

    def __init__(self, database: Database, settings: Settings) -> None:
        unused: Any = None
        self._database = database
        self._store = QueueStore(database)
        self._contexts = Contexts(database, self._store, settings)
        self._results = Results(database, self._store, unused, unused, unused, settings)
        self._comparisons = Comparisons(database, self._store, self._contexts, self._results, unused, unused, settings)
        self._usage = Usage(database)
        self._files, self._batches = FileStore(database), BatchStore(database)
        self._conversations = ConversationStore(database)
        self._claimed: list[Any] = []
        self._turn = count()

    async def prepare(self) -> None:
        async with self._database.hot() as connection:
            await connection.execute("DELETE FROM results WHERE status = 'pending'")
            self._shared = await connection.fetchval("SELECT id FROM contexts ORDER BY id LIMIT 1")
            self._conversation = await connection.fetchval("SELECT id FROM conversations ORDER BY id LIMIT 1")
            rows = await connection.fetch("SELECT id FROM results WHERE owner_id = 0 ORDER BY id DESC LIMIT 500")
            self._newest = [row["id"] for row in rows]
            self._reference = await connection.fetchval(
                "SELECT client_reference FROM results WHERE client_reference IS NOT NULL AND owner_id = 0"
                " ORDER BY id DESC LIMIT 1"
            )

    def probes(self) -> dict[str, Probe]:
        day = datetime.now(UTC)
        window = Window(limit=LISTED, created_after=day - timedelta(days=20), created_before=day - timedelta(days=19))
        today, first = day.date(), (day - timedelta(days=29)).date()

        def listed(page: Window = PAGE, **filters: Any) -> Probe:
            return lambda: self._results.page(ME, Filters(**filters), page)

        def used(group: GroupBy, owner: str | None = None) -> Probe:
            return lambda: self._usage.used(ME, group, first, today, owner)

        return {
            "submit 20": self._submit,
            "claim 20": self._claim,
            "settle 20": self._settle,
            "poll": self._poll,
            "attempts": lambda: self._results.attempts(ME, self._next_id()),
            "gauges": lambda: read_backlog(self._database),
            "results": listed(),
            "results, next page": listed(Window(limit=LISTED, after=self._newest[100])),
            "results of a day": listed(window),
            "results, completed": listed(status=Status.COMPLETED),
            "results, failed": listed(status=Status.FAILED),
            "results, pending": listed(status=Status.PENDING),
            "results of a model": listed(model="m1"),
            "results of a rare model": listed(model="rare"),
            "results of a model, failed": listed(model="m1", status=Status.FAILED),
            "results of a rare model, failed": listed(model="rare", status=Status.FAILED),
            "results of a prompt": listed(context_id=self._shared),
            "results of a prompt, failed": listed(context_id=self._shared, status=Status.FAILED),
            "results by reference": listed(client_reference=self._reference),
            "contexts": lambda: self._contexts.page(ME, PAGE),
            "a context's request": lambda: self._contexts.requests([self._shared]),
            "comparisons": lambda: self._comparisons.page(ME, PAGE),
            "batches": lambda: self._batches.page(0, None, LISTED, None, None, None),
            "batches, failed": lambda: self._batches.page(0, None, LISTED, ["failed"], None, None),
            "files": lambda: self._files.page(0, None, None, LISTED, newest_first=True),
            "files of a purpose": lambda: self._files.page(0, None, "batch_output", LISTED, newest_first=True),
            "a conversation": lambda: self._conversations.page(self._conversation, None, 20, 10**6, newest_first=True),
            "usage by day": used(GroupBy.DAY),
            "usage by model": used(GroupBy.MODEL),
            "usage by key, of all": used(GroupBy.KEY, EVERYBODY),
            "retention, nothing due": lambda: self._remove(DAYS + 1),
            "retention of 20 results": lambda: self._remove(CUT_DAYS),
            "retention of prompts, a pass of 20": lambda: self._store.remove_contexts(
                UUID(int=0), _before(CUT_DAYS), REMOVED
            ),
            "retention of comparisons": lambda: self._store.remove_comparisons(_before(DAYS + 1), REMOVED),
            "merging usage": self._store.compact_usage,
        }

    def _next_id(self) -> UUID:
        return self._newest[next(self._turn) % len(self._newest)]

    async def _poll(self) -> None:
        async with self._database.hot() as connection:
            assert await connection.fetchrow(GET, self._next_id(), 0) is not None

    async def _submit(self) -> None:
        ids = [uuid7() for _ in range(AT_ONCE)]
        tickets = [
            Submission(id, self._shared, "m1", PARAMETERS, 0, time_of(id), time_of(id))  # rank and age
            for id in ids
        ]
        assert len(await self._store.submit(tickets)) == AT_ONCE

    async def _claim(self) -> None:
        slots = [("m1", "gpu1:8001", None)] * AT_ONCE
        self._claimed = (await self._store.claim(slots, lease_seconds=60, dispatcher="bench")).claims
        assert len(self._claimed) == AT_ONCE

    async def _settle(self) -> None:
        ends = [
            Settlement(each.id, each.token, Status.COMPLETED, Outcome.COMPLETED, each.server, ANSWER)
            for each in self._claimed
        ]
        assert len(await self._store.settle(ends)) == AT_ONCE

    async def _remove(self, days: float) -> None:
        removed = await self._store.remove(_before(days), days * 86_400, REMOVED)
        assert removed == (REMOVED if days < DAYS else 0)


def _before(days: float) -> UUID:
    return lowest_at(datetime.now(UTC) - timedelta(days=days))


async def compare(urls: tuple[str, str], settings: Settings) -> dict[str, tuple[float, float]]:
    """Medians in seconds, of the few and of the many, taken call by call in turns."""
    async with AsyncExitStack() as stack:
        sides = []
        for url in urls:
            own = Settings(database_url=url, triton_urls=settings.triton_urls)
            side = Side(await stack.enter_async_context(open_database(own)), own)
            await side.prepare()
            sides.append(side.probes())
        times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides[0]}
        gc.disable()
        for _ in range(TURNS):
            for name in times:
                for side, seconds in zip(sides, times[name], strict=True):
                    started = time.perf_counter()
                    await side[name]()
                    seconds.append(time.perf_counter() - started)
        gc.enable()
    return {name: (statistics.median(few), statistics.median(many)) for name, (few, many) in times.items()}


async def history(bench: Bench, rows: int) -> Figure:
    few = await filled_database(bench.postgres.url, "few", FEW)
    many = await filled_database(bench.postgres.url, "many", rows)
    medians = await compare((few, many), bench.settings)
    ratios = {name: many / few for name, (few, many) in medians.items()}
    worst = max(ratios, key=lambda name: ratios[name])
    return Figure(
        f"{len(ratios)} statements with {rows:,} settled rows, the worst: {worst}",
        ratios[worst],
        "≤ 1.10",
        ratios[worst] <= 1.1,
        f"{medians[worst][1] * 1000:.2f} ms",
        f"{medians[worst][0] * 1000:.2f} ms with {FEW:,}",
        {"seconds": medians, "ratios": ratios},
    )
