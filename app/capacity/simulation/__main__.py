"""Tries the policy of hosts in simulated time: python -m app.capacity.simulation [--trace day] [--seed 1 2 3]."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from app.capacity.simulation import charts, frontier
from app.capacity.simulation.controllers import RIVALS
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
from app.capacity.simulation.traces import MADE, Trace, UnusableTrace
from app.capacity.simulation.world import EVERY, Sample

ROOT = Path(__file__).resolve().parents[3]
# Those that docs/capacity.md shows.
DOCUMENTED, SEED, SEEDS = ROOT / "docs" / "capacity", 1, list(range(1, 11))
WIDTH = 100
ELSEWHERE = ROOT / ".local" / "simulation"

Runs = dict[str, list[tuple[Figures, list[Sample]]]]


def main() -> None:
    parser = ArgumentParser(prog="make simulate", description="Tries the policy of hosts in simulated time.")
    parser.add_argument("--trace", help=f"{', '.join(MADE)}, or a CSV file or JSON lines with at, tokens[, model]")
    parser.add_argument("--seed", type=int, nargs="+", default=[SEED], help="several give the mean, and the range")
    parser.add_argument("--frontier", action="store_true", help="what the policy costs at each rival's wait")
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
        if arguments.frontier:
            found = {
                name: _frontier(console, processes, name, trace, arguments.seed)
                for name, trace in zip(names, traces, strict=True)
            }
            console.print(f"{POLICY}: {frontier.verdict(found)}")
            return
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


def _frontier(
    console: Console, processes: Executor, name: str, trace: Trace, seeds: Sequence[int]
) -> Sequence[frontier.Match]:
    of_settings = {
        each: [processes.submit(frontier.at_setting, name, seed, each) for seed in seeds] for each in frontier.SETTINGS
    }
    of_rivals = {each: [processes.submit(frontier.of_rival, name, seed, each) for seed in seeds] for each in RIVALS}
    settings = {each: mean([run.result() for run in runs]) for each, runs in of_settings.items()}
    rivals = {each: mean([run.result() for run in runs]) for each, runs in of_rivals.items()}
    found = frontier.matches(settings, rivals)
    title = f"{trace.about}: what {POLICY} costs at each rival's p95 wait ({_of(seeds)})"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("$", "p95 s", f"{POLICY}, $", "p95 s", "of its cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("with", no_wrap=True)
    for each in found:
        ours = (f"{each.figures.dollars:.2f}", f"{each.figures.p95:,.0f}") if each.figures else ("", "")
        table.add_row(
            *(each.rival, f"{each.of_rival.dollars:.2f}", f"{each.of_rival.p95:,.0f}", *ours),
            *(f"{each.cost:.2f}", str(each.setting or "no setting is as quick")),
            style="" if each.good else "bold",
        )
    console.print(table)
    for setting, figures in settings.items():
        console.print(f"  {setting}: ${figures.dollars:.2f}, p95 wait {figures.p95:,.0f} s")
    console.print(f"  {_draw_frontier(trace, name in MADE and list(seeds) == SEEDS, settings, rivals)}\n")
    return found


def _draw_frontier(
    trace: Trace, documented: bool, settings: Mapping[frontier.Setting, Figures], rivals: Mapping[str, Figures]
) -> str:
    lines = {
        f"{POLICY} over target_wait{f' with min {least}' if least else ''}": [
            (figures.p95, figures.dollars) for setting, figures in settings.items() if setting.min_hosts == least
        ]
        for least in (0, 1)
    }
    points = {name: (figures.p95, figures.dollars) for name, figures in rivals.items()}
    path = (DOCUMENTED if documented else ELSEWHERE) / f"{trace.name}-waits.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(charts.frontier(_title(trace.about), lines, points))
    return f"drawn: {path.relative_to(ROOT)}"


def _of(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(map(str, seeds))}"


def _title(about: str) -> str:
    return about[:1].upper() + about[1:]


def _table(title: str, runs: Runs, bounds: Sequence[float], seeds: Sequence[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{title} ({_of(seeds)})", title_justify="left")
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
    path.write_text(charts.picture(_title(about), {each: run[0][1] for each, run in runs.items()}))
    return f"drawn: {path.relative_to(ROOT)}"


if __name__ == "__main__":
    main()
