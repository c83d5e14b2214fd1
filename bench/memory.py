"""Resident memory of a dispatcher and an API under the worst load that is legal, with the bounds as they are set."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import httpx
import psutil

from app.db.ids import uuid7
from app.queue.bulk import MAX_STATEMENT_BYTES
from bench.figure import Figure
from bench.stack import Bench, Stopwatch
from tests.service import Process

MIB = 1024 * 1024
# An answer at the bound, by the estimate.
WORST = {"max_tokens": 9900, "logprobs": 20}
LARGE_PROMPT = 4_000_000
# More than there is room for at once.
ANSWERS, PROMPTS = 16, 60
BODIES = 64
UPLOADS = 2


class Peak:
    """The most memory that a process was seen to hold, in MiB."""

    def __init__(self, process: Process) -> None:
        self._process = psutil.Process(process.process.pid)
        self.start = self.most = self._now()

    def _now(self) -> float:
        return float(self._process.memory_info().rss / MIB)

    async def watch(self, work: Awaitable[Any]) -> float:
        task = asyncio.ensure_future(work)
        while not task.done():
            self.most = max(self.most, self._now())
            await asyncio.wait({task}, timeout=0.02)
        task.result()
        return self.most


async def queue(bench: Bench, count: int, parameters: dict[str, Any], prompt_chars: int = 4) -> None:
    """Fills the queue with tickets that have a prompt each."""
    ids = [uuid7() for _ in range(count)]
    await bench.execute(
        "INSERT INTO contexts (id, content) SELECT unnest($1::uuid[]), repeat('word', $2)", ids, prompt_chars // 4
    )
    await bench.execute(
        "INSERT INTO results (id, context_id, model, parameters)"
        " SELECT uuidv7(), unnest($1::uuid[]), 'told', $2::jsonb",
        ids,
        json.dumps({"n": 1} | parameters),
    )


async def dispatcher_peak(bench: Bench, *queued: tuple[int, dict[str, Any], int]) -> tuple[float, float]:
    """MiB at rest and at most."""
    await bench.clear()
    async with bench.dispatcher() as process:
        await asyncio.sleep(3)
        peak = Peak(process)
        for count, parameters, chars in queued:
            await queue(bench, count, parameters, chars)
        return peak.start, await peak.watch(bench.all_settled())


async def dispatcher(bench: Bench) -> Figure:
    """Answers at the bound with 20 alternatives a token, of one choice and of four; and prompts of 4 MB."""
    choices = WORST | {"n": 4, "max_tokens": 2400}
    answers = await dispatcher_peak(bench, (ANSWERS, WORST, 4), (ANSWERS, choices, 4))
    prompts = await dispatcher_peak(bench, (PROMPTS, {"max_tokens": 1}, LARGE_PROMPT))
    bound = (bench.settings.max_in_flight_bytes + bench.settings.max_answer_bytes + MAX_STATEMENT_BYTES) / MIB
    most = max(answers[1], prompts[1])
    return Figure(
        "memory of a dispatcher under the worst load",
        most,
        "reported",
        True,
        f"answers {answers[1]:,.0f} MiB, prompts {prompts[1]:,.0f} MiB",
        f"{answers[0]:,.0f} MiB at rest",
        {"in_flight_and_a_statement_mib": bound, "factor": (most - answers[0]) / bound},
    )


async def api(bench: Bench) -> Figure:
    """64 bodies at the limit at once, of the costliest kinds; two uploads of the largest file beside them."""
    settings = bench.settings
    await bench.clear()
    await bench.execute("INSERT INTO models (name, version) VALUES ('told', '1') ON CONFLICT DO NOTHING")
    text = json.dumps(
        {"model": "told", "prompt": "word" * 249_000, "user": "x" * (settings.max_body_bytes - 1_100_000)}
    )
    values = json.dumps({"content": "x", "metadata": {"a": [1.5] * 200_000, "b": [[]] * 30_000}})
    # Connections for all bodies at once: what waits for one would be held, and refused, without the work.
    async with bench.api(DATABASE_POOL_SIZE=str(BODIES)) as process:
        await bench.serving()
        peak = Peak(process)

        answers: Counter[int] = Counter()

        async def post(path: str, body: str) -> None:
            async with (
                httpx.AsyncClient(base_url=bench.url, trust_env=False, timeout=300) as client,
                client.stream("POST", path, content=body, headers={"content-type": "application/json"}) as answer,
            ):
                answers[answer.status_code] += 1
                assert answer.status_code in (200, 201), await answer.aread()

        async def upload() -> None:
            line = b'{"custom_id": "x"}' + b" " * 1_000_000 + b"\n"
            content = line * (settings.max_file_bytes // len(line))
            async with httpx.AsyncClient(base_url=bench.url, trust_env=False, timeout=300) as client:
                files = {"file": ("a.jsonl", content)}
                answer = await client.post("/v1/files", files=files, data={"purpose": "batch"})
                assert answer.status_code == 200, answer.text

        async def load() -> None:
            bodies = [post("/contexts/", values) for _ in range(BODIES // 2)]
            streamed = text[:-1] + ', "stream": true}'
            bodies += [post("/v1/completions", streamed) for _ in range(BODIES // 2)]
            await asyncio.gather(*bodies, *(upload() for _ in range(UPLOADS)))

        with Stopwatch() as watch:
            most = await peak.watch(load())
        start = peak.start
    return Figure(
        f"memory of an API with {BODIES} bodies at their limit and {UPLOADS} uploads",
        most,
        "reported",
        True,
        f"{most:,.0f} MiB",
        f"{start:,.0f} MiB at rest",
        {"bodies_mib": BODIES * settings.max_body_bytes / MIB, "seconds": watch.seconds, "bodies": answers.total()},
    )
