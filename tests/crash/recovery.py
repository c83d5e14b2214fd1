"""How long each kind of blow kept work from going on, from the ledger and the users' 202s."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from statistics import median

from tests.crash.check import Evidence
from tests.crash.faults import Struck
from tests.crash.load import Tally
from tests.crash.schedule import Act, Target

# What the clock runs to, from the moment of the blow. The time the kit held the victim down is part of it, and so is
# whatever else was down meanwhile.
MEANING = {
    Target.API: "the next 202 after the API was started or thawed",
    Target.DISPATCHER: "its lost claims are claimed again; each ticket is a sample, those below priority 0 left out",
    Target.TRITON: "the next answer of an attempt begun after the server was started or thawed",
    Target.STUB: "the next answer of an attempt begun after the service loaded the model again, or the stub was thawed",
    Target.LLAMA: "the next answer of an attempt begun after the server was started or thawed, whoever ran it",
    Target.POSTGRES: "the next settle after Postgres was started or thawed",
}

# A frozen dispatcher's claims that are lost this much after the thaw were not lost to the freeze.
LATE_SECONDS = 1.0


@dataclass
class Recovery:
    """All blows of one kind; `samples` in seconds."""

    kind: str
    target: Target
    blows: int = 0
    samples: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float | None:
        return median(self.samples) if self.samples else None

    @property
    def longest(self) -> float | None:
        return max(self.samples, default=None)


def recoveries(struck: list[Struck], evidence: Evidence, tally: Tally) -> list[Recovery]:
    taken = sorted(tally.acknowledged.values())
    settled = sorted(row["ended"] for row in evidence.rows if row["ended"] is not None)
    answered = [row for row in evidence.ledger if row["outcome"] == "completed"]
    found: dict[str, Recovery] = {}
    for each in struck:
        blow = each.blow
        entry = found.setdefault(blow.kind, Recovery(blow.kind, blow.target))
        entry.blows += 1
        entry.held.append(each.healed - each.hit)
        match blow.target:
            case Target.LISTENERS:
                continue
            case Target.API:
                samples = _next(taken, each.healed)
            case Target.DISPATCHER:
                samples = [
                    row["ended"]
                    for row in evidence.ledger
                    if row["dispatcher"] == each.victim and row["outcome"] == "lease_lost"
                    # Those of a lower priority are meant to wait behind what came meanwhile.
                    if row["priority"] >= 0
                    if row["started"] <= each.hit < row["ended"]
                    if blow.act is Act.KILL or row["ended"] <= each.healed + LATE_SECONDS
                ]
            case Target.TRITON | Target.STUB | Target.LLAMA:
                begun = [row["ended"] for row in answered if each.healed < row["started"] < each.healed + 60]
                samples = sorted(begun)[:1]
            case _:
                samples = _next(settled, each.healed)
        entry.samples += [moment - each.hit for moment in samples]
    return sorted(found.values(), key=lambda entry: entry.kind)


def _next(times: list[float], moment: float) -> list[float]:
    place = bisect.bisect_right(times, moment)
    return times[place : place + 1]
