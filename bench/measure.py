"""The figures, each against something run beside it."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence

from tritonclient.grpc import aio

from bench.figure import Figure
from bench.http_load import BODY, Connection
from bench.raw_client import messages
from bench.stack import CONCURRENCY, Bench, Stopwatch, cpu_seconds, output_of, outputs_of
from nvidia_triton.local.settings import free_ports

BACKLOG = 5000
ROUNDS = 3
CONNECTIONS = 32
SUBMITS = 6000
LATENCIES, WARM = 400, 20


async def rounds(ours: Callable[[], Awaitable[float]], theirs: Callable[[], Awaitable[float]]) -> tuple[float, float]:
    """Medians of both, taken in turns so that a noisy moment meets both."""
    pairs = []
    for _ in range(ROUNDS):
        pairs.append((await ours(), await theirs()))
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


async def raw(bench: Bench) -> float:
    rate, _ = await raw_client(bench, "noop", BACKLOG // 2)
    return rate


async def raw_client(bench: Bench, model: str, requests: int, tokens: int = 1, *, stream: bool = True) -> list[float]:
    """Requests per second and CPU seconds of `tritonclient` alone."""
    return await outputs_of(
        "bench.raw_client", bench.triton.grpc_url, model, requests, CONCURRENCY, tokens, int(stream)
    )


async def drain(bench: Bench) -> Figure:
    async def ours() -> float:
        await bench.clear()
        await bench.backlog("noop", BACKLOG)
        async with bench.dispatcher():
            return BACKLOG / await bench.settled(BACKLOG)

    mine, other = await rounds(ours, lambda: raw(bench))
    return Figure(
        f"drain a backlog of {BACKLOG:,}",
        mine / other,
        "≥ 1.00",
        mine / other >= 1,
        f"{mine:,.0f}/s",
        f"{other:,.0f}/s",
    )


async def through(bench: Bench) -> Figure:
    async def ours() -> float:
        await bench.clear()
        async with bench.api(), bench.dispatcher():
            await bench.serving()
            with Stopwatch() as watch:
                await submit(bench, "noop", BACKLOG)
                await bench.settled(BACKLOG)
            return BACKLOG / watch.seconds

    mine, other = await rounds(ours, lambda: raw(bench))
    return Figure(
        "through: submitted and settled at once",
        mine / other,
        "≥ 0.75",
        mine / other >= 0.75,
        f"{mine:,.0f}/s",
        f"{other:,.0f}/s",
    )


async def submit(bench: Bench, model: str, count: int) -> float:
    path = f"/models/send/{model}/{bench.context}"
    return await output_of("bench.http_load", "127.0.0.1", bench.settings.api_port, path, CONNECTIONS, count, 202)


async def submits(bench: Bench) -> Figure:
    port = free_ports(1)[0]
    nothing = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.nothing", str(port))
    try:
        async with bench.api():
            await bench.serving()
            await asyncio.sleep(1)

            async def ours() -> float:
                await bench.clear()
                return await submit(bench, "noop", SUBMITS)

            async def theirs() -> float:
                return await output_of("bench.http_load", "127.0.0.1", port, "/nothing", CONNECTIONS, SUBMITS, 202)

            mine, other = await rounds(ours, theirs)
    finally:
        nothing.kill()
        await nothing.wait()
    return Figure(
        f"submits over HTTP, {CONNECTIONS} connections",
        mine / other,
        "≥ 0.50",
        mine / other >= 0.5,
        f"{mine:,.0f}/s",
        f"{other:,.0f}/s",
    )


async def idle_latency(bench: Bench) -> Figure:
    """Submit to completed over HTTP with Prefer: wait, against the same call direct to Triton."""
    await bench.clear()
    async with bench.api(), bench.dispatcher():
        await bench.serving()
        http = await Connection.open("127.0.0.1", bench.settings.api_port)
        path = f"/models/send/noop/{bench.context}"
        async with aio.InferenceServerClient(bench.triton.grpc_url) as client:

            async def ours() -> float:
                with Stopwatch() as watch:
                    _, ticket = await http.ask("POST", path, BODY)
                    url = json.loads(ticket)["status_url"]
                    _, result = await http.ask("GET", url, headers="Prefer: wait=10\r\n")
                assert json.loads(result)["status"] == "completed", result
                return watch.seconds * 1000

            async def theirs() -> float:
                with Stopwatch() as watch:
                    async for result in messages(client, "noop", "ping", 1):
                        result.as_numpy("text_output")
                return watch.seconds * 1000

            times: list[tuple[float, float]] = []
            for _ in range(LATENCIES + WARM):
                times.append((await ours(), await theirs()))
                await asyncio.sleep(0.01)
        http.close()
    all_ours, all_theirs = zip(*times[WARM:], strict=True)
    mine, slow = statistics.median(all_ours), p99(all_ours)
    other, other_slow = statistics.median(all_theirs), p99(all_theirs)
    return Figure(
        "idle latency, submit to completed",
        mine - other,
        "≤ + 4 ms, p99 ≤ 15 ms in all",
        mine - other <= 4 and slow <= 15,
        f"{mine:.1f} ms, p99 {slow:.1f}",
        f"{other:.1f} ms, p99 {other_slow:.1f}",
    )


def p99(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


async def bulk(bench: Bench) -> Figure:
    count = 10_000
    await bench.clear()
    async with bench.api() as api, bench.dispatcher() as dispatcher:
        await bench.serving()
        pids = {"API": api.process.pid, "dispatcher": dispatcher.process.pid, "Postgres": bench.postgres.pid}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        with Stopwatch() as watch:
            await submit(bench, "noop", count)
            await bench.settled(count)
        used = {name: (cpu_seconds(pid) - before[name]) / count * 1000 for name, pid in pids.items()}
    return Figure(
        "CPU seconds per 1,000 tickets",
        sum(used.values()),
        "≤ 0.90",
        sum(used.values()) <= 0.9,
        ", ".join(f"{name} {seconds:.2f}" for name, seconds in used.items()),
        f"{count / watch.seconds:,.0f}/s",
        used,
    )
