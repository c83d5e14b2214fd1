"""Measures everything and prints one table: python -m bench [NAME ...]"""

import asyncio
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import fairness, measure, memory, streaming, tokens
from bench.measure import Figure
from bench.stack import Bench, running_bench

RESULTS = Path(__file__).with_name("results")
HISTORY_ROWS = int(os.environ.get("BENCH_ROWS", "5000000"))

MEASURES: dict[str, Callable[[Bench], Awaitable[Figure]]] = {
    "drain": measure.drain,
    "through": measure.through,
    "submits": measure.submits,
    "latency": measure.idle_latency,
    "slots": measure.slots_busy,
    "fair": fairness.fair_share,
    "interactive": fairness.interactive,
    "bulk": measure.bulk,
    "tokens": tokens.tokens,
    "saturation": tokens.saturation,
    "streaming": streaming.streaming,
    "dispatcher-memory": memory.dispatcher,
    "api-memory": memory.api,
    "history": lambda bench: measure.history(bench, HISTORY_ROWS),
}


async def run(names: list[str]) -> list[Figure]:
    figures = []
    console = Console()
    async with running_bench() as bench:
        for name in names:
            with console.status(f"measuring: {name}"):
                figures.append(await MEASURES[name](bench))
            figure = figures[-1]
            console.print(f"{name}: {figure.value:.2f} (target {figure.target}); {figure.ours} against {figure.theirs}")
    return figures


def show(figures: list[Figure]) -> None:
    table = Table(title="bench")
    for column in ("what", "value", "target", "", "ours", "against"):
        table.add_column(column)
    for figure in figures:
        mark = "" if figure.target == "reported" else "[green]met[/]" if figure.met else "[red]short[/]"
        table.add_row(figure.name, f"{figure.value:.2f}", figure.target, mark, figure.ours, figure.theirs)
    Console().print(table)


def main() -> None:
    names = sys.argv[1:] or list(MEASURES)
    unknown = set(names) - set(MEASURES)
    if unknown:
        sys.exit(f"There is no measure {', '.join(sorted(unknown))}; those there are: {', '.join(MEASURES)}.")
    figures = asyncio.run(run(names))
    show(figures)
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    file = RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "at": now.isoformat()}
    file.write_text(json.dumps({"machine": machine, "figures": [asdict(figure) for figure in figures]}, indent=2))
    print(f"written to {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


if __name__ == "__main__":
    main()
