"""What open consoles cost the tickets, and how soon the console's lists answer beside a long history."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx

from app.console.navigation import ENTRIES
from app.db.ids import lowest_at
from bench.figure import Figure
from bench.measure import rounds
from bench.rows import filled_database
from bench.stack import Bench

BACKLOG = 5_000
OPEN = 10
# Those that change most while tickets run.
LIVE = ("/", "/tickets", "/tickets?state=running", "/models", "/usage")
CALLS = 40
LONGEST_SECONDS = 0.2
LARGEST_BYTES = 100_000
# Each filter alone, and several together; words that most have, many, few and none; what is far back; and what each of
# two filters finds in a third of the tickets or more, but both in none.
TICKETS = (
    *("state=queued", "state=running", "state=completed", "state=failed", "model=m1", "model=rare", "reference=ref-13"),
    *("server=gpu1", "server=old", "server=nowhere", "error=engine_error", "error=expired", "error=nothing"),
    *("meta=source.name+%3D+job+3", "meta=source.name+%3D+nothing"),
    *("text=w1", "text=w30", "text=w2000", "text=w29000", "text=x7", "text=nothing+has+this", "text=w1+w2+w3+w5+w8"),
    *("state=failed&model=m1", "state=failed&model=rare", "state=completed&model=rare", "state=queued&model=m1"),
    *(
        "state=completed&error=engine_error",
        "state=failed&text=w1",
        "state=failed&text=w30+w31",
        "state=queued&text=w1",
    ),
    *("model=m2&server=gpu1", "server=old&error=expired", "model=m2&text=w2000&meta=source.name+%3D+job+4"),
    *("text=w1&server=old", "text=w1+w2&model=rare", "state=completed&server=gpu1&text=w1&meta=source.name+%3D+job+3"),
)
# Each also far back in the history, as somebody comes to it page by page, and of a day some weeks ago.
FAR_BACK, SOME_DAY = timedelta(days=50), timedelta(days=30)
OTHERS = (
    "/chat?text=w1+nothing",
    "/usage?by=owner",
    "/usage?by=key&from=2020-01-01",
    "/webhooks?state=given_up",
    "/logs?text=nothing+has+this",
)
# A week of webhooks, an audit log, and full rings of log lines, beside the history.
BESIDE = (
    "INSERT INTO webhook_deliveries (owner_id, result_id, event, url, due_at, delivered_at, tries)"
    " SELECT n % 5, uuidv7(), 'result.completed', 'https://example.com/hook', NULL,"
    " CASE WHEN n % 10000 > 0 THEN now() END, 1 FROM generate_series(1, 500000) n",
    "INSERT INTO audit (action, actor, owner_id, subject)"
    " SELECT CASE WHEN n % 1000 = 0 THEN 'key.revoked' ELSE 'result.cancelled' END, 'bench', 0, n::text"
    " FROM generate_series(1, 200000) n",
    "INSERT INTO log_lines (at, level, process, host, logger, message)"
    " SELECT now(), 30, process, 'bench:1', 'bench', repeat(md5(n::text), 4)"
    " FROM generate_series(1, 5000) n, unnest(ARRAY['api', 'dispatcher', 'capacity']) process",
    "ANALYZE",
)


async def open_consoles(bench: Bench) -> Figure:
    async def drained(pages: int) -> float:
        await bench.clear()
        async with bench.api():
            await bench.serving()
            async with looking_at(bench, pages):
                await bench.backlog("noop", BACKLOG)
                async with bench.dispatcher():
                    return BACKLOG / await bench.settled(BACKLOG)

    watched, alone = await rounds(lambda: drained(OPEN), lambda: drained(0))
    return Figure(
        f"drain {BACKLOG:,} beside {OPEN} open pages of the console",
        watched / alone,
        "≥ 0.90",
        watched / alone >= 0.9,
        f"{watched:,.0f}/s",
        f"{alone:,.0f}/s with none open",
    )


@asynccontextmanager
async def looking_at(bench: Bench, pages: int) -> AsyncIterator[None]:
    """Browsers that show pages, each with its stream of changes."""
    async with httpx.AsyncClient(base_url=bench.url, trust_env=False, timeout=60) as client:

        async def look(path: str, seen: asyncio.Event) -> None:
            async with client.stream("GET", f"/console{path}", headers={"Accept": "text/event-stream"}) as answer:
                assert answer.status_code == 200, path
                async for _ in answer.aiter_raw():
                    seen.set()

        async with asyncio.TaskGroup() as group:
            shown = [asyncio.Event() for _ in range(pages)]
            tasks = [group.create_task(look(LIVE[n % len(LIVE)], seen)) for n, seen in enumerate(shown)]
            for seen in shown:
                await seen.wait()
            yield
            for task in tasks:
                task.cancel()


def ticket_paths(now: datetime) -> list[str]:
    before = lowest_at(now - FAR_BACK)
    day = now - SOME_DAY
    span = f"after={day:%Y-%m-%dT%H:%M}&before={day + timedelta(days=1):%Y-%m-%dT%H:%M}"
    places = ("", f"&older_than={before}", f"&{span}")
    return [f"/tickets?{query}{place}" for query in TICKETS for place in places]


async def lists(bench: Bench, rows: int) -> Figure:
    url = await filled_database(bench.postgres.url, "lists", rows)
    connection = await asyncpg.connect(url)
    for statement in BESIDE:
        await connection.execute(statement, timeout=600)
    await connection.close()
    paths = [*(entry.path for entry in ENTRIES), *OTHERS, *ticket_paths(datetime.now(UTC))]
    times: dict[str, list[float]] = {path: [] for path in paths}
    sizes: dict[str, int] = {}
    async with (
        bench.api(DATABASE_URL=url),
        httpx.AsyncClient(base_url=bench.url, trust_env=False, timeout=60) as client,
    ):
        await bench.serving()
        for _ in range(CALLS):
            for path in paths:
                started = time.perf_counter()
                answer = await client.get(f"/console{path}")
                times[path].append(time.perf_counter() - started)
                assert answer.status_code == 200, (path, answer.text[:500])
                sizes[path] = len(answer.content)
    slow = {path: statistics.quantiles(each, n=20)[-1] for path, each in times.items()}
    worst = max(slow, key=lambda path: slow[path])
    largest = max(sizes, key=lambda path: sizes[path])
    extra: dict[str, Any] = {"p95_seconds": slow, "bytes": sizes}
    return Figure(
        f"{len(paths)} pages and lists of the console with {rows:,} settled rows, p95 of the slowest: {worst}",
        slow[worst] * 1000,
        f"≤ {LONGEST_SECONDS * 1000:.0f} ms",
        slow[worst] <= LONGEST_SECONDS and sizes[largest] < LARGEST_BYTES,
        f"{slow[worst] * 1000:.0f} ms; median of all {statistics.median(slow.values()) * 1000:.0f} ms",
        f"largest page {sizes[largest] / 1000:.0f} kB: {largest}",
        extra,
    )
