"""What a run found, as tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tests.crash.check import Verdict
from tests.crash.recovery import MEANING, Recovery


@dataclass
class Report:
    """Times in seconds, rates in tickets/s."""

    seed: int
    verdict: Verdict
    recoveries: list[Recovery]
    load_seconds: float
    rate: float
    best_second: int
    settling_seconds: float

    @property
    def problems(self) -> list[str]:
        return self.verdict.problems


def best_second(times: list[float]) -> int:
    return max(Counter(int(time) for time in times).values(), default=0)


def show(report: Report, console: Console) -> None:
    console.print(_verdict_table(report))
    if report.recoveries:
        console.print(_recovery_table(report.recoveries))
        console.print(
            "  held: how long the kit kept it down or frozen; other blows in between count too", highlight=False
        )
        for target, meaning in MEANING.items():
            console.print(f"  {target}: until {meaning}", highlight=False)
    for problem in report.problems:
        console.print(problem, style="bold red", markup=False, highlight=False)
    if not report.problems:
        console.print("[bold green]Every promise held.")


def _verdict_table(report: Report) -> Table:
    verdict = report.verdict
    table = Table(title=f"seed {report.seed}")
    table.add_column("tickets")
    table.add_column("", justify="right")
    table.add_column("", overflow="fold")

    def row(name: str, value: object, note: str = "", *, bad: bool = False) -> None:
        table.add_row(name, f"[bold red]{value}" if bad else str(value), note)

    row("acknowledged", verdict.acknowledged, f"and {verdict.unacknowledged} stored whose 202 was lost on its way")
    row("lost", len(verdict.lost), "acknowledged, not in the table", bad=bool(verdict.lost))
    row("settled", verdict.settled, f"{verdict.completed} completed, {verdict.cancelled} cancelled on request")
    twice = len(set(verdict.settled_twice) | set(verdict.changed))
    row("settled twice", twice, "two ends in the ledger, or a final row that changed", bad=twice > 0)
    made_twice = len(verdict.made_twice)
    row("made twice", made_twice, "two tickets of one Idempotency-Key", bad=made_twice > 0)
    row("stored despite 503", verdict.stored_unsaid, "the 503 says that nothing was stored")
    row("ledger wrong", len(verdict.ledger_wrong), "a gap, or another end", bad=bool(verdict.ledger_wrong))
    row("stuck", len(verdict.stuck), f"pending; settling took {report.settling_seconds:.1f} s", bad=bool(verdict.stuck))
    failed = sum(verdict.failed.values())
    row("failed", failed, _counts(verdict.failed) or "besides the cancelled ones", bad=failed > 0)
    if verdict.batches:
        note = f"of {verdict.batch_lines} lines, each once in its files"
        row("batches", verdict.batches, note, bad=bool(verdict.batches_wrong))
    row("attempts beyond need", verdict.beyond_need, _counts(verdict.retries))
    row("tickets/s", f"{report.rate:.0f}", f"over {report.load_seconds:.0f} s; best second {report.best_second}")
    if verdict.triton_deaths:
        row("tritonserver ended", verdict.triton_deaths, "by itself, and was started again")
    row("answers", sum(verdict.answers.values()), f"{_counts(verdict.answers)}, none {verdict.unanswered}")
    return table


def _recovery_table(recoveries: list[Recovery]) -> Table:
    table = Table(title="recovery, in seconds from the blow")
    for name in ("kind", "blows", "held p50", "samples", "p50", "max"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for each in recoveries:
        held = sorted(each.held)[len(each.held) // 2]
        cells = (str(each.blows), f"{held:.1f}", str(len(each.samples)), _seconds(each.p50), _seconds(each.longest))
        table.add_row(each.kind, *cells)
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _counts(counts: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
