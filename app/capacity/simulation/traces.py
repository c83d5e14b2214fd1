"""What is asked, and when: traces made from a seed, or recorded in a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from app.capacity.plan import Pool

DAY, HOUR, MINUTE = 86_400.0, 3600.0, 60.0
# Of an answer, on average.
TOKENS = 400.0
MODEL = "model"
# What the definition of the pool says. The GPUs of the market are faster or slower than that.
POOL = Pool(
    "simulated", (MODEL,), max_hosts=12, target_wait=60, max_price=0.8, slots=16, tokens_per_second=400, startup=600
)


class UnusableTrace(Exception):
    """Shown to the user as it stands."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A ticket: `at` seconds after the trace begins, which is at midnight. `expires_in` as its sender said."""

    at: float
    tokens: float
    model: str = MODEL
    expires_in: float | None = None


@dataclass(frozen=True)
class Trace:
    """`closed`: spans of seconds in which the market has no offer."""

    name: str
    about: str
    arrivals: Sequence[Arrival]
    seconds: float
    pool: Pool = POOL
    closed: Sequence[tuple[float, float]] = ()

    @property
    def expiring(self) -> bool:
        return any(each.expires_in is not None for each in self.arrivals)


def day(random: Generator) -> Trace:
    """Two hosts' work by day, next to nothing by night, and for half an hour five hosts' work at once."""

    def load(hour: float) -> float:
        by_day = 2.0 * np.exp(-(((hour - 14.0) / 4.0) ** 4))
        return float(0.01 + by_day + (3.0 if 15.5 <= hour < 16.0 else 0.0))

    return Trace("day", "a day with a burst", _poisson(random, load, 24), DAY)


def batch(random: Generator) -> Trace:
    """50,000 tickets at two in the morning."""
    arrivals = [Arrival(2 * HOUR + number * 0.001, tokens) for number, tokens in enumerate(_tokens(random, 50_000))]
    return Trace("batch", "a night batch of 50,000", arrivals, DAY / 2)


def trickle(random: Generator) -> Trace:
    """Somebody asks one to several questions, about two minutes apart, some thirty times a day."""
    times: list[float] = []
    at = 0.0
    while True:
        at += random.exponential(80 * MINUTE if at % DAY < 7 * HOUR else 35 * MINUTE)
        if at >= DAY:
            break
        times.append(at)
        follow = at
        while random.random() < 0.6:
            follow += 20.0 + random.exponential(100.0)
            times.append(follow)
    times = sorted(each for each in times if each < DAY)
    arrivals = [Arrival(at, tokens) for at, tokens in zip(times, _tokens(random, len(times)), strict=True)]
    return Trace("trickle", "a trickle", arrivals, DAY)


def dead(random: Generator) -> Trace:
    """Half a host's work from eight to eighteen; from nine to one o'clock nobody offers a host."""
    arrivals = _poisson(random, lambda hour: 0.5 if 8 <= hour < 18 else 0.0, 24)
    return Trace("dead", "a dead market", arrivals, DAY, closed=((9 * HOUR, 13 * HOUR),))


MADE: Mapping[str, Callable[[Generator], Trace]] = {"day": day, "batch": batch, "trickle": trickle, "dead": dead}


def make(name: str, seed: int) -> Trace:
    return MADE[name](np.random.default_rng([seed, list(MADE).index(name)]))


def recorded(path: Path) -> Trace:
    """From a CSV file with a heading or a file of JSON lines: `at` (seconds, or a time with its offset), `tokens`, and
    where they are known `model` and `expires_in`.

    Raises:
        UnusableTrace: it cannot be read; says in which line what is wrong.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableTrace(f"{path} cannot be read: {error}. Give a CSV file or JSON lines.") from None
    lines = text.splitlines()
    arrivals = []
    first = 1
    if path.suffix == ".csv":
        rows: Iterable[Any] = csv.DictReader(lines)
        first = 2
    else:
        rows = map(_json, filter(None, lines))
    number = first
    try:
        for row in rows:
            arrivals.append(_arrival(row))
            number += 1
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise UnusableTrace(
            f"{path}, line {number}: {what}. A line has `at` (seconds or a time), `tokens`, and perhaps `model` and "
            "`expires_in`."
        ) from None
    if not arrivals:
        raise UnusableTrace(f"{path} has no tickets.")
    # From midnight (UTC) of the first day on, so that budgets of a day mean what they say.
    start = min(each.at for each in arrivals) // DAY * DAY
    moved = sorted(
        (Arrival(each.at - start, each.tokens, each.model, each.expires_in) for each in arrivals),
        key=lambda each: each.at,
    )
    models = tuple(dict.fromkeys(each.model for each in moved))
    pool = Pool(**{**POOL.__dict__, "models": models})
    return Trace(path.stem, f"recorded in {path.name}", moved, moved[-1].at + MINUTE, pool)


def _json(line: str) -> Any:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    return row


def _arrival(row: Mapping[str, Any]) -> Arrival:
    tokens = float(row["tokens"])
    expires_in = float(row["expires_in"]) if row.get("expires_in") else None
    at = _seconds(row["at"])
    if not (0 < tokens < 1e7 and 0 <= at < 1e11 and (expires_in is None or 0 < expires_in < 1e9)):
        raise ValueError("a number is out of range")
    return Arrival(at, tokens, str(row.get("model") or MODEL), expires_in)


def _seconds(value: str | float) -> float:
    try:
        return float(value)
    except ValueError:
        return datetime.fromisoformat(str(value)).timestamp()


def _poisson(random: Generator, load: Callable[[float], float], hours: int) -> list[Arrival]:
    """Tickets that come by chance; `load` is the hour's work in hosts as the pool's definition has them."""
    counts = [
        random.poisson(load((minute + 0.5) / 60) * POOL.tokens_per_second / TOKENS * MINUTE)
        for minute in range(hours * 60)
    ]
    times = np.concatenate(
        [minute * MINUTE + np.sort(random.uniform(0, MINUTE, count)) for minute, count in enumerate(counts)]
    )
    return [Arrival(float(at), tokens) for at, tokens in zip(times, _tokens(random, len(times)), strict=True)]


def _tokens(random: Generator, count: int) -> list[float]:
    spread = 0.6
    drawn = random.lognormal(np.log(TOKENS) - spread**2 / 2, spread, count)
    return [float(each) for each in np.clip(np.round(drawn), 1, 4000)]
