"""What tokens cost: CPU seconds for 1,000 of them, and how busy an engine is kept whose answers take 100 ms."""

from __future__ import annotations

import json
import statistics

from bench.figure import Figure
from bench.measure import raw_client
from bench.stack import CONCURRENCY, Bench, cpu_seconds

# The model `tokens` makes one every 4 ms in each of its slots, and sends each by itself.
SECONDS_PER_TOKEN = 0.004
SHORT, LONG = 25, 100
REQUESTS = {SHORT: 20 * CONCURRENCY, LONG: 10 * CONCURRENCY}
ROUNDS = 3


async def drained(bench: Bench, tokens: int, *, stream: bool) -> tuple[float, dict[str, float]]:
    """Seconds that a backlog took, and CPU seconds per 1,000 tokens by process, from the first settle on."""
    count = REQUESTS[tokens]
    await bench.clear()
    parameters = {"n": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": tokens, "ignore_eos": True}
    await bench.execute(
        "INSERT INTO results (id, context_id, model, parameters, streamed)"
        " SELECT uuidv7(), $1, 'tokens', $2::text::jsonb, $3 FROM generate_series(1, $4::int)",
        bench.context,
        json.dumps(parameters),
        stream,
        count,
    )
    await bench.execute("VACUUM ANALYZE results")
    async with bench.dispatcher() as dispatcher:
        pids = {"dispatcher": dispatcher.process.pid, "Postgres": bench.postgres.pid}
        done = 0
        while not done:
            done = await bench.value("SELECT count(*) FROM results WHERE status = 'completed'")
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        seconds = await bench.settled(count)
        left = (count - done) * tokens / 1000
        return seconds, {name: (cpu_seconds(pid) - before[name]) / left for name, pid in pids.items()}


async def tokens(bench: Bench) -> Figure:
    """Tickets of 100 tokens that nobody follows, over `tritonclient` streaming the same, in turns."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for length in (SHORT, LONG):
            for stream in (False, True):
                name = f"{length} tokens, {'streamed' if stream else 'whole'}"
                _, used = await drained(bench, length, stream=stream)
                ours.setdefault(name, []).append(used["dispatcher"])
                _, cpu = await raw_client(bench, "tokens", REQUESTS[length], length, stream=stream)
                theirs.setdefault(name, []).append(cpu / (REQUESTS[length] * length) * 1000)
    mine, other = ({name: statistics.median(values) for name, values in side.items()} for side in (ours, theirs))
    ratio = mine[f"{LONG} tokens, whole"] / other[f"{LONG} tokens, streamed"]
    return Figure(
        f"CPU of the dispatcher per token that nobody follows, {LONG} a ticket, over tritonclient streaming",
        ratio,
        "≤ 0.20",
        ratio <= 0.2,
        "; ".join(f"{name}: {value:.4f} s per 1,000" for name, value in mine.items()),
        "; ".join(f"{name}: {value:.4f}" for name, value in other.items()),
        {"ours": mine, "theirs": other},
    )


async def saturation(bench: Bench) -> Figure:
    """Tickets of 25 tokens on 64 slots of 100 ms each, over an engine that never waits."""
    best = REQUESTS[SHORT] * SHORT * SECONDS_PER_TOKEN / CONCURRENCY
    pairs = []
    for _ in range(ROUNDS):
        seconds, _ = await drained(bench, SHORT, stream=False)
        rate, _ = await raw_client(bench, "tokens", REQUESTS[SHORT], SHORT, stream=False)
        pairs.append((best / seconds, rate * best / REQUESTS[SHORT]))
    mine, other = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    return Figure(
        f"{CONCURRENCY} slots of {SHORT * SECONDS_PER_TOKEN * 1000:.0f} ms, {SHORT} tokens a ticket, of ideal",
        mine,
        "≥ 0.80",
        mine >= 0.8,
        f"{mine:.2f}",
        f"{other:.2f}, tritonclient without a stream",
    )
