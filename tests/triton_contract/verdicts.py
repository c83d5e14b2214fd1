"""The table of the probes in docs/models.md, and what an engine gives."""

from collections.abc import Sequence
from pathlib import Path

from nvidia_triton.contract.__main__ import PROBES, outcomes
from nvidia_triton.contract.lifecycle import RELOAD
from nvidia_triton.contract.probe import Probe, Subject

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
ALL = (*PROBES, *RELOAD)


def documented(column: str) -> dict[str, str]:
    """One column of the table, by probe."""
    lines = DOCUMENT.read_text().partition("\n| probe |")[2].split("\n\n")[0].splitlines()
    head = ["", "probe", *(cell.strip() for cell in lines[0].split("|"))]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[2:]]
    return {row[1]: row[head.index(column)] for row in rows}


async def assert_as_documented(subject: Subject, column: str, probes: Sequence[Probe] = ALL) -> None:
    """Carries the probes out, and compares the verdict of each."""
    found = await outcomes(subject, probes)
    wanted = documented(column)
    assert list(wanted) == [each.name for each in ALL]
    assert [each.probe for each in found] == list(probes)
    other = [each for each in found if str(each.verdict) != wanted[each.probe.name]]
    assert not other, "\n".join(f"{each.probe.name}: {each.verdict}, {each.seen}" for each in other)
