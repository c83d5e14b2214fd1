"""The outcomes as a table: for a terminal, and as it stands in docs/models.md."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nvidia_triton.contract.probe import Outcome, Verdict

COLOURS = {Verdict.WORKS: "green", Verdict.DIFFERS: "yellow", Verdict.BROKEN: "red", Verdict.UNSEEN: "dim"}
SHOWN_CHARS = 110


def table(outcomes: Sequence[Outcome], title: str) -> Table:
    found = Table("probe", "verdict", "what came", "what the service does", title=title, title_justify="left")
    for each in outcomes:
        seen = each.seen if len(each.seen) <= SHOWN_CHARS else each.seen[: SHOWN_CHARS - 1] + "…"
        colour = COLOURS[each.verdict] if each.harmful or each.verdict is not Verdict.BROKEN else "yellow"
        found.add_row(
            escape(each.probe.name),
            f"[{colour}]{each.verdict}[/{colour}]",
            escape(seen),
            escape(each.probe.service),
        )
    return found


def summary(outcomes: Sequence[Outcome]) -> str:
    counts = {verdict: sum(each.verdict is verdict for each in outcomes) for verdict in Verdict}
    line = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    harmful = [each.probe.name for each in outcomes if each.harmful]
    if harmful:
        return f"{line}. This service needs what is broken here: {', '.join(harmful)}."
    if counts[Verdict.BROKEN]:
        return f"{line}. This service does not use what is broken."
    return f"{line}."


def markdown(columns: dict[str, Sequence[Outcome]]) -> str:
    """A row for each probe, a column of verdicts for each engine."""
    probes = [each.probe for each in next(iter(columns.values()))]
    lines = [
        "| " + " | ".join(["probe", *columns, "what the service does"]) + " |",
        "| " + " | ".join(["---"] * (len(columns) + 2)) + " |",
    ]
    for number, probe in enumerate(probes):
        verdicts = [str(outcomes[number].verdict) for outcomes in columns.values()]
        lines.append("| " + " | ".join([probe.name, *verdicts, probe.service]) + " |")
    return "\n".join(lines)


def show(console: Console, outcomes: Sequence[Outcome], title: str) -> None:
    console.print(table(outcomes, title))
    console.print(summary(outcomes), markup=False, highlight=False, soft_wrap=True)
