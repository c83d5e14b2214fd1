"""Where the time of one ticket goes on an idle service: python -m bench.timeline

POST, then GET with `Prefer: wait`, one ticket after the other; medians of each part, and of the slowest in a hundred.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.queue.statements.channels import QUEUED_CHANNEL, SETTLED_CHANNEL
from bench.http_load import BODY, Connection
from bench.measure import p99
from bench.stack import Bench, running_bench
from tests.service import Process

TICKETS = 400
WARM = 40
Marks = dict[str, list[tuple[float, float]]]


async def timeline(bench: Bench) -> None:
    files = {name: bench.directory / f"{name}.marks" for name in ("app.main", "app.worker")}
    processes = [
        Process("bench.marks", bench.settings, bench.directory / "marked.log", MARKED=name, MARKS=str(file))
        for name, file in files.items()
    ]
    calls = []
    try:
        await bench.serving()
        http = await Connection.open("127.0.0.1", bench.settings.api_port)
        for _ in range(TICKETS + WARM):
            began = time.monotonic()
            _, ticket = await http.ask("POST", f"/models/send/noop/{bench.context}", BODY)
            stored = time.monotonic()
            url = json.loads(ticket)["status_url"]
            asked = time.monotonic()
            _, result = await http.ask("GET", url, headers="Prefer: wait=10\r\n")
            calls.append((began, stored, asked, time.monotonic()))
            assert json.loads(result)["status"] == "completed", result
            await asyncio.sleep(0.02)
        http.close()
        for process in processes:
            process.signal(signal.SIGTERM)
        for process in processes:
            await process.ended()
    finally:
        for process in processes:
            if process.process.poll() is None:
                process.kill()
    show(calls[WARM:], read(files["app.main"]), read(files["app.worker"]))


def read(file: Path) -> Marks:
    marks: Marks = {}
    for line in file.read_text().splitlines():
        began, ended, name = line.split(" ", 2)
        marks.setdefault(name, []).append((float(began), float(ended)))
    for each in marks.values():
        each.sort()
    return marks


def after(marks: Marks, name: str, moment: float, *, last: bool = False, before: float = 0.0) -> tuple[float, float]:
    """The first since the moment, or the last one that ended before another moment."""
    found = marks[name][bisect_left(marks[name], (moment, 0.0)) :]
    return [each for each in found if each[1] <= before][-1] if last else found[0]


def show(calls: Sequence[tuple[float, float, float, float]], api: Marks, worker: Marks) -> None:
    parts: dict[str, list[float]] = {}

    def add(name: str, seconds: float) -> None:
        parts.setdefault(name, []).append(seconds * 1000)

    for began, stored, asked, answered in calls:
        submit, flush = after(api, "submit", began), after(api, "flush", began)
        queued = after(worker, QUEUED_CHANNEL, began)
        claim, engine = after(worker, "claim", began), after(worker, "engine", began)
        settle, slot = after(worker, "settle", began), after(worker, "slot", began)
        settled = after(api, SETTLED_CHANNEL, began)
        first = after(api, "read", began)
        last = after(api, "read", began, last=True, before=answered)
        add("POST sent to the insert's statement sent", submit[0] - began)
        add("insert's statement", submit[1] - submit[0])
        add("  (flush: waits for the disk)", flush[1] - flush[0])
        add("  (POST answered, from its beginning)", stored - began)
        add("  (GET sent to its first read sent)", first[0] - asked)
        add("  (first read)", first[1] - first[0])
        add("insert's statement sent to the dispatcher notified", queued[0] - submit[0])
        add("notified to the claim sent", claim[0] - queued[0])
        add("claim's statement", claim[1] - claim[0])
        add("claim answered to the request sent to the engine", engine[0] - claim[1])
        add("engine", engine[1] - engine[0])
        add("engine answered to the settle sent", settle[0] - engine[1])
        add("  (settle's statement)", settle[1] - settle[0])
        add("  (slot given back)", slot[1] - slot[0])
        add("settle sent to the API notified", settled[0] - settle[0])
        add("API notified to the last read sent", last[0] - settled[0])
        add("last read", last[1] - last[0])
        add("read to the answer here", answered - last[1])
        add("all", answered - began)
    table = Table(title=f"medians of {len(calls)} tickets, load {os.getloadavg()[0]:.1f}")
    for column in ("part", "ms", "p99"):
        table.add_column(column)
    for name, values in parts.items():
        table.add_row(name, f"{statistics.median(values):.2f}", f"{p99(values):.1f}")
    Console(width=100).print(table)
    began, ended = calls[0][0], calls[-1][3]
    for name, marks in (("API", api), ("dispatcher", worker)):
        within = {key: sum(began <= each[0] <= ended for each in found) / len(calls) for key, found in marks.items()}
        print(name, {key: round(count, 2) for key, count in within.items() if count >= 0.02})


async def main() -> None:
    async with running_bench() as bench:
        await timeline(bench)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
