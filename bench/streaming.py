"""What streaming adds: every token of the `clock` model says when it was made."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field

from tritonclient.grpc import aio

from app.db.ids import uuid7
from bench.figure import Figure
from bench.http_load import Connection
from bench.raw_client import messages
from bench.stack import Bench, cpu_seconds

PACE_MS = 20
TOKENS = 150
COUNTS = (1, 16, 32)


@dataclass
class Delays:
    """From the making of a token to its arrival here, in milliseconds."""

    values: list[float] = field(default_factory=list)

    def take(self, text: str) -> None:
        now = time.monotonic_ns()
        self.values.extend((now - int(made)) / 1e6 for made in text.split())

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.values, n=20)[-1]


async def bare(bench: Bench, streams: int, delays: Delays) -> None:
    """`tritonclient` alone, with the tensors the dispatcher sends."""
    async with aio.InferenceServerClient(bench.triton.grpc_url) as client:

        async def one() -> None:
            async for result in messages(client, "clock", str(PACE_MS), TOKENS):
                delays.take(result.as_numpy("text_output")[0].decode())

        await asyncio.gather(*(one() for _ in range(streams)))


async def submit(bench: Bench, context: object) -> str:
    http = await Connection.open("127.0.0.1", bench.settings.api_port)
    body = json.dumps({"parameters": {"max_tokens": TOKENS}, "stream": True})
    status, ticket = await http.ask("POST", f"/models/send/clock/{context}", body)
    assert status == 202, ticket
    http.close()
    return str(json.loads(ticket)["result_id"])


async def follow(bench: Bench, id_: str, delays: Delays) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.settings.api_port, limit=1 << 20)
    writer.write(f"GET /results/{id_}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    event = b""
    while event != b"completed":
        line = (await reader.readline()).rstrip()
        if line.startswith(b"event: "):
            event = line[7:]
        elif line.startswith(b"data: ") and event == b"delta":
            for delta in json.loads(line[6:])["deltas"]:
                delays.take(delta["text"])
    writer.close()


async def streaming(bench: Bench) -> Figure:
    """Delay per token with few streams and with many, and what CPU all processes of the service spend on them."""
    await bench.clear()
    context = uuid7()
    await bench.execute("INSERT INTO contexts (id, content) VALUES ($1, $2)", context, str(PACE_MS))
    ours, theirs = ({count: Delays() for count in COUNTS} for _ in range(2))
    cpu: dict[int, list[float]] = {streams: [] for streams in COUNTS}
    async with bench.api() as api, bench.dispatcher() as dispatcher:
        await bench.serving()
        pids = (api.process.pid, dispatcher.process.pid, bench.postgres.pid)

        async def work(streams: int) -> None:
            before = sum(map(cpu_seconds, pids))
            ids = await asyncio.gather(*(submit(bench, context) for _ in range(streams)))
            await asyncio.gather(*(follow(bench, id_, ours[streams]) for id_ in ids))
            cpu[streams].append((sum(map(cpu_seconds, pids)) - before) / (streams * TOKENS) * 1000)

        await work(1)
        ours[1].values.clear()
        for _ in range(3):
            for streams in COUNTS:
                await bare(bench, streams, theirs[streams])
                await work(streams)
    added = {streams: ours[streams].median - theirs[streams].median for streams in COUNTS}
    used = {streams: statistics.median(values) for streams, values in cpu.items()}
    extra = {
        "added_median_ms": added,
        "added_p95_ms": {streams: ours[streams].p95 - theirs[streams].p95 for streams in COUNTS},
        "cpu_seconds_per_1000_tokens": used,
    }
    counts = ", ".join(map(str, COUNTS[:-1]))
    return Figure(
        f"streaming: added delay per token, median, {counts} and {COUNTS[-1]} streams",
        max(added.values()),
        "< 15 ms",
        max(added.values()) < 15,
        ", ".join(f"{streams}: {ours[streams].median:.1f} ms (p95 {ours[streams].p95:.1f})" for streams in COUNTS)
        + "; CPU s per 1,000 tokens "
        + ", ".join(f"{streams}: {seconds:.2f}" for streams, seconds in used.items()),
        ", ".join(f"{streams}: {theirs[streams].median:.1f} ms (p95 {theirs[streams].p95:.1f})" for streams in COUNTS),
        extra,
    )
