"""Tries the policy of hosts in simulated time: python -m app.capacity.simulation [--trace day] [--seed 1 2 3]."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from app.capacity.simulation.charts import picture
from app.capacity.simulation.figures import (
    NAMES,
    POLICY,
    Figures,
    beside,
    hindsight,
    mean,
    simulated,
    trace_of,
    verdict,
)
from app.capacity.simulation.traces import MADE, UnusableTrace
from app.capacity.simulation.world import EVERY, Sample

ROOT = Path(__file__).resolve().parents[3]
# Those that docs/capacity.md shows.
DOCUMENTED, SEED = ROOT / "docs" / "capacity", 1
WIDTH = 100
ELSEWHERE = ROOT / ".local" / "simulation"

Runs = dict[str, list[tuple[Figures, list[Sample]]]]


def main() -> None:
    parser = ArgumentParser(prog="make simulate", description="Tries the policy of hosts in simulated time.")
    parser.add_argument("--trace", help=f"{', '.join(MADE)}, or a CSV file or JSON lines with at, tokens[, model]")
    parser.add_argument("--seed", type=int, nargs="+", default=[SEED], help="several give the mean, and the range")
    arguments = parser.parse_args()
    names = [arguments.trace] if arguments.trace else list(MADE)
    console = Console()
    # The columns have to be seen, on a narrow terminal in two lines.
    console = Console(width=max(console.width, WIDTH))
    try:
        traces = [trace_of(name, arguments.seed[0]) for name in names]
    except UnusableTrace as error:
        print(f"{error} Traces that can be made: {', '.join(MADE)}.", file=sys.stderr)
        sys.exit(2)
    console.print(
        f"This is a simulation: the service's own policy, decided every {EVERY:.0f} s of simulated time, on a made-up "
        "market. Nothing is rented. docs/capacity.md says what is assumed, and what the columns mean."
    )
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        for name, trace in zip(names, traces, strict=True):
            pending = {
                each: [processes.submit(simulated, name, seed, each) for seed in arguments.seed] for each in NAMES
            }
            bounds = [each.result() for each in [processes.submit(hindsight, name, seed) for seed in arguments.seed]]
            runs = {each: [run.result() for run in futures] for each, futures in pending.items()}
            console.print(_table(f"{trace.about}, {len(trace.arrivals):,} tickets", runs, bounds, arguments.seed))
            of = {each: [figures for figures, _ in run] for each, run in runs.items()}
            ratios = [ours.dollars / bound for ours, bound in zip(of[POLICY], bounds, strict=True)]
            console.print(f"  {POLICY}: {verdict(ratios)}")
            for rival in NAMES[1:]:
                words = beside(mean(of[POLICY]), mean(of[rival]), trace.pool.target_wait, sum(bounds) / len(bounds))
                console.print(f"  beside {rival}: {words}")
            console.print(f"  {_draw(trace.name, trace.about, arguments.seed[0], name in MADE, runs)}\n")


def _table(title: str, runs: Runs, bounds: Sequence[float], seeds: Sequence[int]) -> Table:
    of_seeds = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(map(str, seeds))}"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{title} ({of_seeds})", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("$", "ratio", "p50 s", "p95 s", "idle", "no work", "billed", "hosts", "failed", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, each in runs.items():
        figures = mean([figures for figures, _ in each])
        ratios = [of.dollars / bound for (of, _), bound in zip(each, bounds, strict=True)]
        ratio = f"{ratios[0]:.2f}" if len(ratios) == 1 else f"{min(ratios):.2f}-{max(ratios):.2f}"
        table.add_row(
            *(name, f"{figures.dollars:.2f}", ratio, f"{figures.p50:,.0f}", f"{figures.p95:,.0f}"),
            *(f"{figures.idle_while_waiting:.0f}", f"{figures.without_work:,.0f}", f"{figures.billed:,.0f}"),
            *(f"{figures.rented:.0f}", f"{figures.failed:.0f}", f"{figures.unanswered:.0f}"),
            style="bold" if name == POLICY else "",
        )
    table.add_row("hindsight", f"{sum(bounds) / len(bounds):.2f}", "1.00")
    return table


def _draw(name: str, about: str, seed: int, made: bool, runs: Runs) -> str:
    path = DOCUMENTED / f"{name}.svg" if made and seed == SEED else ELSEWHERE / f"{name}-{seed}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(picture(about[:1].upper() + about[1:], {each: run[0][1] for each, run in runs.items()}))
    return f"drawn: {path.relative_to(ROOT)}"


if __name__ == "__main__":
    main()
