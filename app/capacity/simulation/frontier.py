"""What the policy costs at each rival's wait: the knobs `target_wait` and `min` trade dollars for waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.capacity.simulation.controllers import RIVALS, policy
from app.capacity.simulation.figures import EQUAL, Figures, trace_of
from app.capacity.simulation.world import World

HOUR = 3600.0


@dataclass(frozen=True)
class Setting:
    """`target_wait` in seconds, and `min`."""

    target_wait: float
    min_hosts: int = 0

    def __str__(self) -> str:
        wait = f"{self.target_wait:g} s" if self.target_wait < HOUR else f"{self.target_wait / HOUR:g} h"
        return f"target_wait {wait}" + (f", min {self.min_hosts}" if self.min_hosts else "")


WAITS = (5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, *(hours * HOUR for hours in (1, 4, 16, 24, 30)))
SETTINGS = (*map(Setting, WAITS), *(Setting(wait, 1) for wait in (10.0, 30.0, 60.0)))


@dataclass(frozen=True)
class Match:
    """A rival, and the cheapest setting with which the policy's p95 wait is at most the rival's, or equal to it."""

    rival: str
    of_rival: Figures
    setting: Setting | None
    figures: Figures | None

    @property
    def cost(self) -> float:
        """Of the rival's; infinite where no setting is as quick."""
        return self.figures.dollars / self.of_rival.dollars if self.figures else float("inf")

    @property
    def good(self) -> bool:
        return self.cost <= 1 + EQUAL


def at_setting(name: str, seed: int, setting: Setting) -> Figures:
    trace = trace_of(name, seed)
    pool = replace(trace.pool, target_wait=setting.target_wait, min_hosts=setting.min_hosts)
    return Figures.of(World(replace(trace, pool=pool), seed).run(policy(pool)))


def of_rival(name: str, seed: int, rival: str) -> Figures:
    trace = trace_of(name, seed)
    return Figures.of(World(trace, seed).run(RIVALS[rival](trace.pool)))


def matches(settings: Mapping[Setting, Figures], rivals: Mapping[str, Figures]) -> list[Match]:
    return [_match(rival, figures, settings) for rival, figures in rivals.items()]


def _match(rival: str, figures: Figures, settings: Mapping[Setting, Figures]) -> Match:
    # Seconds that nobody notices are equal, too.
    longest = figures.p95 + max(EQUAL * figures.p95, 1.0)
    fit = [
        setting for setting, each in settings.items() if each.p95 <= longest and each.unanswered <= figures.unanswered
    ]
    best = min(fit, key=lambda setting: settings[setting].dollars, default=None)
    return Match(rival, figures, best, settings[best] if best else None)


def verdict(of_traces: Mapping[str, Sequence[Match]]) -> str:
    """Whether the policy costs no more than any rival at the rival's own wait, or where it does."""
    bad = [
        f"{trace}, {each.rival} ("
        + (f"{each.cost:.2f} of its cost" if each.figures else "no setting is as quick")
        + f" at a p95 wait of {each.of_rival.p95:,.0f} s)"
        for trace, found in of_traces.items()
        for each in found
        if not each.good
    ]
    return f"dearer at a rival's wait: {'; '.join(bad)}" if bad else "equal or better at every rival's wait"
