"""What is done to whom and when, drawn from a seed before anything starts: pure, no I/O."""

import random
from dataclasses import dataclass
from enum import StrEnum

DISPATCHERS = 3


class Target(StrEnum):
    API = "api"
    DISPATCHER = "dispatcher"
    TRITON = "triton"
    STUB = "stub"
    LLAMA = "llama-server"
    POSTGRES = "postgres"
    LISTENERS = "listeners"


class Act(StrEnum):
    KILL = "kill"  # SIGKILL, started again after `hold`; a stub when the service does it
    FREEZE = "freeze"  # SIGSTOP, SIGCONT after `hold`
    RESTART = "restart"  # the polite stop, started again after `hold`
    CUT = "cut"  # its connections to Postgres are ended by the server


@dataclass(frozen=True)
class Blow:
    """One act on one process, `at` seconds after the load began; `hold` seconds until it is made good."""

    at: float
    target: Target
    act: Act
    hold: float
    index: int = 0

    @property
    def kind(self) -> str:
        return f"{self.target} {self.act}"


@dataclass(frozen=True)
class Trick:
    """A kind of blow and how long it may last; `weight` counts how often it is in the deck."""

    target: Target
    act: Act
    shortest: float
    longest: float
    weight: int = 1


@dataclass(frozen=True)
class Lane:
    """Processes that are hit one after the other; `rest` seconds on average between two blows."""

    tricks: tuple[Trick, ...]
    rest: float
    index: int = 0


def lanes(lease: float, *, mixed: bool = False) -> list[Lane]:
    """The lanes of a stack whose claims last `lease` seconds: half of the long freezes outlive one.

    `mixed`, it has a server of another kind than Triton too.
    """

    def freezes(target: Target) -> tuple[Trick, Trick]:
        return (
            Trick(target, Act.FREEZE, 0.2 * lease, 0.9 * lease),
            Trick(target, Act.FREEZE, 1.2 * lease, 2.5 * lease),
        )

    dispatcher = (Trick(Target.DISPATCHER, Act.KILL, 0.1, 1.5, weight=3), *freezes(Target.DISPATCHER))
    return [
        *(Lane(dispatcher, rest=9, index=index) for index in range(DISPATCHERS)),
        Lane((Trick(Target.API, Act.KILL, 0.1, 1.0, weight=2), Trick(Target.API, Act.FREEZE, 0.3, lease)), rest=20),
        Lane(
            (
                Trick(Target.TRITON, Act.KILL, 0.2, 3.0, weight=2),
                Trick(Target.STUB, Act.KILL, 2.0, 8.0, weight=2),
                *freezes(Target.TRITON),
                *freezes(Target.STUB),
            ),
            rest=20,
        ),
        Lane(
            (
                Trick(Target.POSTGRES, Act.KILL, 0.1, 1.5, weight=2),
                Trick(Target.POSTGRES, Act.RESTART, 0.0, 0.5),
                *freezes(Target.POSTGRES),
                Trick(Target.LISTENERS, Act.CUT, 0.0, 0.0, weight=2),
            ),
            rest=15,
        ),
        # The last one, so that a seed means the same for all others.
        *(
            [Lane((Trick(Target.LLAMA, Act.KILL, 0.1, 2.0, weight=2), *freezes(Target.LLAMA)), rest=15)]
            if mixed
            else []
        ),
    ]


def draw(seed: int, seconds: float, lease: float, *, mixed: bool = False) -> list[list[Blow]]:
    """One list of blows a lane, in order of time; the last one is made good before `seconds` are over.

    A lane deals its tricks like a deck of cards, so that each has its turn before one comes again.
    """
    dice = random.Random(seed)
    return [_deal(random.Random(dice.getrandbits(64)), lane, seconds) for lane in lanes(lease, mixed=mixed)]


def _deal(dice: random.Random, lane: Lane, seconds: float) -> list[Blow]:
    blows: list[Blow] = []
    deck: list[Trick] = []
    at = dice.uniform(0.2, 1.0) * lane.rest
    while True:
        if not deck:
            deck = [trick for trick in lane.tricks for _ in range(trick.weight)]
            dice.shuffle(deck)
        trick = deck.pop()
        hold = dice.uniform(trick.shortest, trick.longest)
        if at + hold > seconds:
            return blows
        blows.append(Blow(round(at, 3), trick.target, trick.act, round(hold, 3), lane.index))
        at += hold + dice.uniform(0.3, 1.7) * lane.rest
