"""What a flood does to single prompts: one of another owner, and one of a batch's long generations."""

from __future__ import annotations

import asyncio
import json
import statistics

from bench.figure import Figure
from bench.http_load import BODY, Connection
from bench.stack import CONCURRENCY, Bench, Stopwatch

FLOOD = 10_000
FLOODER = 1
PROMPTS = 20
MODEL = "half-second"
SHORT_MODEL = "tokens"
SINGLES = 200
# Of 4 ms each.
LONG_TOKENS = 7500
RUNNING = "SELECT count(*) FROM results WHERE status = 'pending' AND attempt_token IS NOT NULL AND priority < 0"


async def fair_share(bench: Bench) -> Figure:
    """Single prompts, one after the other, on an idle system and beside a backlog that fills every slot."""
    await bench.clear()
    async with bench.api(), bench.dispatcher():
        await bench.serving()
        http = await Connection.open("127.0.0.1", bench.settings.api_port)
        alone = await _prompts(bench, http)
        await bench.execute(
            "INSERT INTO results (id, owner_id, context_id, model, parameters)"
            ' SELECT uuidv7(), $4, $1, $2, \'{"n": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 1}\''
            " FROM generate_series(1, $3::int)",
            bench.context,
            MODEL,
            FLOOD,
            FLOODER,
        )
        await bench.execute("VACUUM ANALYZE results")
        # The first one meets the moment in which the backlog is taken up.
        beside = (await _prompts(bench, http))[1:]
        left = await bench.value("SELECT count(*) FROM results WHERE status = 'pending'")
        http.close()
    assert left > CONCURRENCY, "the flood ended before the prompts did"
    await bench.clear()
    idle, busy = statistics.median(alone), statistics.median(beside)
    return Figure(
        f"a single prompt of 500 ms beside another owner's {FLOOD:,}",
        busy / idle,
        "≤ 2.00",
        busy / idle <= 2,
        f"{busy * 1000:.0f} ms, at most {max(beside) * 1000:.0f} ms",
        f"{idle * 1000:.0f} ms idle",
        {"left": left, "beside": beside, "alone": alone},
    )


async def interactive(bench: Bench) -> Figure:
    """Single prompts of one token, on an idle system and while generations of 30 s, which yield, have their slots."""
    await bench.clear()
    async with bench.api(), bench.dispatcher():
        await bench.serving()
        http = await Connection.open("127.0.0.1", bench.settings.api_port)
        alone = (await _prompts(bench, http, SHORT_MODEL, SINGLES))[1:]
        parameters = {"n": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": LONG_TOKENS, "ignore_eos": True}
        await bench.execute(
            "INSERT INTO results (id, context_id, model, parameters, priority, rank)"
            " SELECT uuidv7(), $1, $2, $3::text::jsonb, -50, now() + interval '1 hour'"
            " FROM generate_series(1, $4::int)",
            bench.context,
            SHORT_MODEL,
            json.dumps(parameters),
            2 * CONCURRENCY,
        )
        while await bench.value(RUNNING) < 0.9 * CONCURRENCY:  # noqa: ASYNC110 - others do the work
            await asyncio.sleep(0.05)
        beside = (await _prompts(bench, http, SHORT_MODEL, SINGLES))[1:]
        running = await bench.value(RUNNING)
        http.close()
    await bench.clear()
    idle, busy = (statistics.quantiles(times, n=100)[98] for times in (alone, beside))
    added = (busy - idle) * 1000
    return Figure(
        f"a single prompt beside generations of 30 s in {running} of {CONCURRENCY} slots, p99",
        added,
        "≤ + 100 ms",
        added <= 100 and running >= 0.93 * CONCURRENCY,
        f"{busy * 1000:.0f} ms, median {statistics.median(beside) * 1000:.1f}",
        f"{idle * 1000:.0f} ms idle, median {statistics.median(alone) * 1000:.1f}",
        {"beside": beside, "alone": alone},
    )


async def _prompts(bench: Bench, http: Connection, model: str = MODEL, count: int = PROMPTS) -> list[float]:
    """Seconds from submit to completed of each."""
    seconds = []
    for _ in range(count):
        with Stopwatch() as watch:
            _, ticket = await http.ask("POST", f"/models/send/{model}/{bench.context}", BODY)
            _, result = await http.ask("GET", json.loads(ticket)["status_url"], headers="Prefer: wait=60\r\n")
        assert json.loads(result)["status"] == "completed", result
        seconds.append(watch.seconds)
    return seconds
