"""What is left of 3,000 jobs when worker, API and what holds them are killed in turn: python -m bench.peers.crash

Each design gets the same blows at the same counts of acknowledged jobs. What was killed is started again a second
later, and what ended by itself too, as a supervisor would. CRASH_JOBS (3000) is the number of jobs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from bench.http_load import body_of
from bench.peers.designs import Celery, Design, PgQueuer, Service, Store, reported
from bench.peers.processes import Part
from bench.stack import Bench, running_bench
from bench.tokens import SHORT

JOBS = int(os.environ.get("CRASH_JOBS") or 3000)
USERS = 16
# Slow enough for every design, so that each blow meets jobs that wait and jobs that run.
PAUSE_SECONDS = 0.1
DOWN_SECONDS = 1.0
SUPERVISE_SECONDS = 0.5
# Longer than any of the designs needs to take over the work of a worker that is gone.
STUCK_SECONDS = 120.0
COLUMNS = ("accepted", "completed", "failed", "for ever", "unknown", "again", "seconds")


@dataclass
class Outcome:
    jobs: list[dict[str, Any]] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    seconds: float = 0.0

    def row(self) -> list[int]:
        states = [self.states[each] for each in ("completed", "failed", "pending", "unknown")]
        return [len(self.jobs), *states, max(0, self.runs - len(self.jobs)), round(self.seconds)]


async def runs(bench: Bench) -> int:
    """How many requests the model has been given since Triton started."""
    async with httpx.AsyncClient(trust_env=False) as client:
        found = (await client.get(f"{bench.triton.http_url}/v2/models/tokens/stats")).json()
    return int(found["model_stats"][0]["inference_stats"]["success"]["count"])


async def send(design: Design, outcome: Outcome) -> None:
    """USERS clients, until enough jobs are acknowledged; an attempt without an answer counts for nothing."""
    url, body = f"http://127.0.0.1:{design.port}{design.send_path('tokens')}", body_of(SHORT)

    async def user(client: httpx.AsyncClient) -> None:
        while len(outcome.jobs) < JOBS:
            with suppress(httpx.TransportError):
                answer = await client.post(url, content=body, headers={"Content-Type": "application/json"})
                if answer.status_code == 202 and len(outcome.jobs) < JOBS:
                    outcome.jobs.append(answer.json())
            await asyncio.sleep(PAUSE_SECONDS)

    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        await asyncio.gather(*(user(client) for _ in range(USERS)))


async def states(design: Design, jobs: list[dict[str, Any]]) -> list[str]:
    """What the API says of each."""
    found = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{design.port}", trust_env=False, timeout=30) as client:
        for job in jobs:
            answer = await client.get(design.state_path(job))
            found.append("unknown" if answer.status_code == 404 else str(answer.json()["status"]))
    return found


async def blows(design: Design, outcome: Outcome, down: set[str], say: Callable[[str], None]) -> None:
    """Kills the worker, the API and each store, at even distances of acknowledged jobs."""
    victims: list[Part | Store] = [design.worker, design.api, *design.stores]
    for number, part in enumerate(victims, 1):
        while len(outcome.jobs) < JOBS * number / (len(victims) + 1):  # noqa: ASYNC110 - others do
            await asyncio.sleep(0.01)
        say(f"{part.name} is killed")
        down.add(part.name)
        await asyncio.to_thread(part.kill)
        await asyncio.sleep(DOWN_SECONDS)
        await asyncio.to_thread(part.start)
        await asyncio.to_thread(part.wait)
        down.discard(part.name)


async def supervise(design: Design, down: set[str]) -> None:
    while True:
        for part in (design.worker, design.api):
            if part.name not in down and not part.running:
                part.start()
        await asyncio.sleep(SUPERVISE_SECONDS)


async def settled(design: Design, outcome: Outcome) -> float:
    """When the last job ended: waits until every one has, or nothing has for long."""
    left, progress = list(outcome.jobs), time.monotonic()
    while left and time.monotonic() - progress < STUCK_SECONDS:
        with suppress(httpx.TransportError, KeyError, json.JSONDecodeError):
            now = await states(design, left)
            still = [job for job, state in zip(left, now, strict=True) if state == "pending"]
            if len(still) < len(left):
                progress = time.monotonic()
            left = still
        await asyncio.sleep(1)
    return progress


async def crashed(bench: Bench, design: Design, say: Callable[[str], None]) -> Outcome:
    outcome, down, before = Outcome(), set[str](), await runs(bench)
    for part in (design.worker, design.api):
        await design.start(part)
    supervisor = asyncio.create_task(supervise(design, down))
    begin = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(send(design, outcome))
        group.create_task(blows(design, outcome, down, say))
    say(f"{len(outcome.jobs):,} jobs acknowledged; waiting for the last")
    outcome.seconds = await settled(design, outcome) - begin
    outcome.states.update(await states(design, outcome.jobs))
    outcome.runs = await runs(bench) - before
    supervisor.cancel()
    design.stop()
    return outcome


async def compare(console: Console) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    async with running_bench() as bench:
        for make in (Service, Celery, PgQueuer):
            design = make(bench)
            with console.status(design.name) as status:

                def say(text: str, name: str = design.name, status: Any = status) -> None:
                    status.update(f"{name}: {text}")

                try:
                    await design.prepare()
                    found[design.name] = await crashed(bench, design, say)
                finally:
                    design.stop()
    return found


def show(console: Console, found: dict[str, Outcome]) -> None:
    table = Table(title=f"{JOBS:,} jobs, killed in turn")
    table.add_column("design")
    for title in COLUMNS:
        table.add_column(title, justify="right")
    for name, outcome in found.items():
        table.add_row(name, *(f"{value:,}" for value in outcome.row()))
    console.print(table)
    console.print(
        "for ever: still pending when nothing had ended for two minutes. again: runs more than one a job. seconds: to "
        "the last end.",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(reported(compare, show))
