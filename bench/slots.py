"""How full an engine is kept, and how much waits in it: by one dispatcher and by several, nothing configured for it."""

from __future__ import annotations

import asyncio
import statistics
from contextlib import AsyncExitStack
from typing import NamedTuple

import httpx

from bench.figure import Figure
from bench.stack import CONCURRENCY, Bench, outputs_of

SECONDS = 0.5
MODEL = "half-second"
COUNT = 20 * CONCURRENCY
DISPATCHERS = (1, 2, 4)
ROUNDS = 3
# `tritonclient` alone has so many in flight: one never waits for the next.
AHEAD = 2
LOOK_SECONDS = 0.1
# While there is a backlog: without the first requests, which find the engine empty, and those behind which none waits.
EDGE = 2 * CONCURRENCY
ENDS = f"""
SELECT extract(epoch FROM max(completed_at) FILTER (WHERE n = {COUNT - EDGE})
                          - max(completed_at) FILTER (WHERE n = {EDGE}))::float8
FROM (SELECT completed_at, row_number() OVER (ORDER BY completed_at) AS n FROM results) ended
"""


class Drained(NamedTuple):
    """What the slots did while there was a backlog: work divided by time, and what the engine counted, on average."""

    share: float
    running: float
    waiting: float


async def busy(bench: Bench) -> Figure:
    """The least of the medians counts. The engine itself is late too, as `tritonclient` beside it shows."""
    runs: dict[int, list[Drained]] = {count: [] for count in DISPATCHERS}
    alone = []
    for _ in range(ROUNDS):
        rate, _ = await outputs_of("bench.raw_client", bench.triton.grpc_url, MODEL, COUNT, CONCURRENCY + AHEAD, 1, 0)
        alone.append(rate * SECONDS / CONCURRENCY)
        for count in DISPATCHERS:
            runs[count].append(await drained(bench, count))
    medians = {count: Drained(*map(statistics.median, zip(*found, strict=True))) for count, found in runs.items()}
    least = min(median.share for median in medians.values())
    return Figure(
        f"slots kept busy, {CONCURRENCY} of {SECONDS * 1000:.0f} ms, by {', '.join(map(str, DISPATCHERS))} dispatchers",
        least,
        "≥ 0.98",
        least >= 0.98,
        "; ".join(
            f"{count}: {median.share:.3f}, {median.running:.1f} run and {median.waiting:.1f} wait in the engine"
            for count, median in medians.items()
        ),
        f"{CONCURRENCY} slots; `tritonclient` with {CONCURRENCY + AHEAD} in flight: {statistics.median(alone):.3f}",
        {"runs": runs, "alone": alone},
    )


async def drained(bench: Bench, dispatchers: int) -> Drained:
    await bench.clear()
    await bench.backlog(MODEL, COUNT)
    async with AsyncExitStack() as stack, httpx.AsyncClient(trust_env=False) as http:
        for _ in range(dispatchers):
            await stack.enter_async_context(bench.dispatcher())
        work = asyncio.create_task(bench.settled(COUNT))
        seen = []
        while not work.done():
            await asyncio.sleep(LOOK_SECONDS)
            text = (await http.get(bench.triton.metrics_url)).text
            left = await bench.value("SELECT count(*) FROM results WHERE status = 'pending'")
            if EDGE < left < COUNT - EDGE:
                seen.append((_gauge(text, "sim_requests_running"), _gauge(text, "sim_requests_waiting")))
        await work
    seconds = await bench.value(ENDS)
    running, waiting = map(statistics.mean, zip(*seen, strict=True))
    return Drained((COUNT - 2 * EDGE) * SECONDS / CONCURRENCY / seconds, running, waiting)


def _gauge(text: str, name: str) -> float:
    lines = [line for line in text.splitlines() if line.startswith(name) and f'"{MODEL}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
