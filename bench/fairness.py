"""What one owner's flood does to another's single prompts."""

from __future__ import annotations

import json
import statistics

from bench.http_load import BODY, Connection
from bench.measure import Figure
from bench.stack import CONCURRENCY, Bench, Stopwatch

FLOOD = 10_000
FLOODER = 1
PROMPTS = 20
MODEL = "half-second"


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


async def _prompts(bench: Bench, http: Connection) -> list[float]:
    """Seconds from submit to completed of each."""
    seconds = []
    for _ in range(PROMPTS):
        with Stopwatch() as watch:
            _, ticket = await http.ask("POST", f"/models/send/{MODEL}/{bench.context}", BODY)
            _, result = await http.ask("GET", json.loads(ticket)["status_url"], headers="Prefer: wait=60\r\n")
        assert json.loads(result)["status"] == "completed", result
        seconds.append(watch.seconds)
    return seconds
