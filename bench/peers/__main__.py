"""The same jobs through this service and through what people use instead: python -m bench.peers

Each design has one API process, one worker and the same 64 requests in flight at the same Triton, which both of the
peers speak to as `bench.raw_client` does. Everything is measured in turns, the medians of three rounds are shown.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from bench.http_load import BODY, Connection
from bench.measure import CONNECTIONS, raw_client
from bench.peers.designs import Celery, Design, PgQueuer, Service, reported
from bench.stack import CONCURRENCY, Bench, output_of, running_bench
from bench.tokens import REQUESTS, SECONDS_PER_TOKEN, SHORT

ROUNDS = 3
JOBS = 3000
SINGLES = 300
WARM = 20
LOOK_SECONDS = 0.02
HOST = "127.0.0.1"
IDEAL = CONCURRENCY / (SHORT * SECONDS_PER_TOKEN)

COLUMNS = {
    "submits": "submits/s",
    "through": "jobs/s",
    "median": "one job",
    "p99": "p99",
    "saturation": f"{SHORT} tokens",
}


async def submit(design: Design, model: str, count: int, tokens: int = 1) -> float:
    return await output_of(
        "bench.http_load", HOST, design.port, design.send_path(model), CONNECTIONS, count, 202, tokens
    )


async def until(design: Design, count: int) -> None:
    while await design.done() < count:  # noqa: ASYNC110 - others do the work
        await asyncio.sleep(LOOK_SECONDS)


async def singles(design: Design) -> list[float]:
    """Milliseconds from a POST to the moment its job is known to be done, one after the other."""
    connection = await Connection.open(HOST, design.port)
    times = []
    for _ in range(SINGLES):
        begin = time.perf_counter()
        _, job = await connection.ask("POST", design.send_path("noop"), BODY)
        await design.finish(connection, json.loads(job))
        times.append((time.perf_counter() - begin) * 1000)
        await asyncio.sleep(0.01)
    connection.close()
    return times[WARM:]


async def saturated(design: Design) -> float:
    """A backlog that is there when the worker starts: the rate from what is first seen done to the end, of ideal."""
    before, count = await design.done(), REQUESTS[SHORT]
    await submit(design, "tokens", count, SHORT)
    await design.start(design.worker)
    while (seen := await design.done()) == before:  # noqa: ASYNC110 - others do the work
        await asyncio.sleep(LOOK_SECONDS)
    begin = time.perf_counter()
    await until(design, before + count)
    return (before + count - seen) / (time.perf_counter() - begin) / IDEAL


async def measured(design: Design) -> dict[str, float]:
    await design.start(design.api)
    before = await design.done()
    found = {"submits": await submit(design, "noop", JOBS)}
    await design.start(design.worker)
    await until(design, before + JOBS)

    begin = time.perf_counter()
    await submit(design, "noop", JOBS)
    await until(design, before + 2 * JOBS)
    found["through"] = JOBS / (time.perf_counter() - begin)

    times = await singles(design)
    found |= {"median": statistics.median(times), "p99": statistics.quantiles(times, n=100)[98]}

    design.worker.kill()
    found["saturation"] = await saturated(design)
    design.worker.kill()
    design.api.kill()
    return found


async def limit(bench: Bench) -> dict[str, float]:
    """`tritonclient` alone, without a stream."""
    through, _ = await raw_client(bench, "noop", JOBS, stream=False)
    rate, _ = await raw_client(bench, "tokens", REQUESTS[SHORT], SHORT, stream=False)
    return {"through": through, "saturation": rate / IDEAL}


async def compare(console: Console) -> dict[str, dict[str, float]]:
    values: dict[str, list[dict[str, float]]] = {}
    async with running_bench() as bench:
        designs: list[Design] = [Service(bench), Celery(bench), PgQueuer(bench)]
        try:
            for design in designs:
                await design.prepare()
            with console.status("") as status:
                for number in range(ROUNDS):
                    for design in designs:
                        status.update(f"round {number + 1} of {ROUNDS}: {design.name}")
                        values.setdefault(design.name, []).append(await measured(design))
                    status.update(f"round {number + 1} of {ROUNDS}: tritonclient alone")
                    values.setdefault("tritonclient", []).append(await limit(bench))
        finally:
            for design in designs:
                design.stop()
    return {name: medians(each) for name, each in values.items()}


def medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def show(console: Console, found: dict[str, dict[str, float]]) -> None:
    table = Table(title="the same jobs, by design")
    table.add_column("design")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    forms: dict[str, Callable[[float], str]] = {
        "submits": "{:,.0f}".format,
        "through": "{:,.0f}".format,
        "median": "{:.1f} ms".format,
        "p99": "{:.1f} ms".format,
        "saturation": "{:.2f}".format,
    }
    for name, values in found.items():
        table.add_row(name, *(forms[each](values[each]) if each in values else "-" for each in COLUMNS))
    console.print(table)
    console.print(
        f"jobs/s: {JOBS:,} submitted and done at once. one job, p99: from its POST to its answer. {SHORT} tokens: of "
        f"ideal, {REQUESTS[SHORT]:,} jobs of so many. tritonclient is alone, as the limit.",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(reported(compare, show))
