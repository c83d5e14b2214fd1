"""Measures everything and prints one table: python -m bench [NAME ...]"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from rich.console import Console

from bench import (
    batches,
    consoles,
    fairness,
    history,
    list_indexes,
    meaning,
    measure,
    memory,
    slots,
    streaming,
    tokens,
)
from bench.figure import Figure, show, write
from bench.plots import targets_plot
from bench.stack import Bench, running_bench

HISTORY_ROWS = int(os.environ.get("BENCH_ROWS", "10000000"))

MEASURES: dict[str, Callable[[Bench], Awaitable[Figure]]] = {
    "drain": measure.drain,
    "through": measure.through,
    "submits": measure.submits,
    "latency": measure.idle_latency,
    "slots": slots.busy,
    "fair": fairness.fair_share,
    "interactive": fairness.interactive,
    "bulk": measure.bulk,
    "batch-load": batches.batch_load,
    "batch-run": batches.batch_run,
    "tokens": tokens.tokens,
    "saturation": tokens.saturation,
    "streaming": streaming.streaming,
    "consoles": consoles.open_consoles,
    "lists": lambda bench: consoles.lists(bench, HISTORY_ROWS),
    "list-indexes": list_indexes.list_indexes,
    "meaning": meaning.search,
    "dispatcher-memory": memory.dispatcher,
    "api-memory": memory.api,
    "history": lambda bench: history.history(bench, HISTORY_ROWS),
}


async def run(names: list[str]) -> dict[str, Figure]:
    figures = {}
    console = Console()
    async with running_bench() as bench:
        for name in names:
            with console.status(f"measuring: {name}"):
                figure = figures[name] = await MEASURES[name](bench)
            console.print(f"{name}: {figure.value:.2f} (target {figure.target}); {figure.ours} against {figure.theirs}")
    return figures


def main() -> None:
    names = sys.argv[1:] or list(MEASURES)
    unknown = set(names) - set(MEASURES)
    if unknown:
        sys.exit(f"There is no measure {', '.join(sorted(unknown))}; those there are: {', '.join(MEASURES)}.")
    figures = asyncio.run(run(names))
    show(list(figures.values()))
    write(figures, targets_plot(figures))


if __name__ == "__main__":
    main()
