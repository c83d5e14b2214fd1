"""One run: load, blows, healing, judgement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.crash.batches import BatchLoad, wrong_with
from tests.crash.check import Watch, all_settled, collect, judge
from tests.crash.faults import Faults
from tests.crash.load import GONE, MIXED, Load, Recipe
from tests.crash.recovery import recoveries
from tests.crash.report import Report, best_second
from tests.crash.schedule import Blow
from tests.crash.stack import running_stack

READY_SECONDS = 30.0


@dataclass(frozen=True)
class Options:
    """`seconds` of load, `rate` tickets/s at most, `patience` seconds for the last ticket to settle."""

    seed: int
    seconds: float
    rate: float
    patience: float
    # Tickets that may wait before the users hold back, so that the end comes within the patience.
    backlog: int = 3000
    # A server of another kind than Triton too.
    mixed: bool = False


class Diary:
    """The event log: one line each, with the wall clock and the seconds since the load began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = ""
        self._began = time.time()
        self._file = path.open("w", buffering=1)

    def begin(self) -> None:
        self._began = time.time()

    def note(self, text: str) -> None:
        now = time.time()
        self.last = text
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        self._file.write(f"{clock}.{int(now % 1 * 1000):03} {now - self._began:8.3f} {text}\n")

    def close(self) -> None:
        self._file.close()


Progress = Callable[[float, Load, Watch], None]


async def crash(options: Options, plan: list[list[Blow]], directory: Path, diary: Diary, progress: Progress) -> Report:
    """Runs a stack of our own under load and under the blows of `plan`."""
    async with running_stack(directory, mixed=options.mixed) as stack:
        faults = Faults(stack, diary.note)
        return await _run(options, stack.api_url, stack.postgres.url, MIXED, diary, progress, faults, plan)


async def watch_only(
    options: Options, api_url: str, database_url: str, model: str, diary: Diary, progress: Progress
) -> Report:
    """Loads and judges an installation that somebody else may hit."""
    recipes = (Recipe(1.0, model, "Say something.", (1, 16)),)
    return await _run(options, api_url, database_url, recipes, diary, progress, None, [])


async def _run(
    options: Options,
    api_url: str,
    database_url: str,
    recipes: tuple[Recipe, ...],
    diary: Diary,
    progress: Progress,
    faults: Faults | None,
    plan: list[list[Blow]],
) -> Report:
    load = Load(api_url, recipes, options.rate, options.seed, lambda: watch.unsettled < options.backlog)
    watch = Watch(database_url, load.tally)
    await _ready(load)
    diary.begin()
    began = time.monotonic()
    batches = BatchLoad(api_url, recipes[0].model, options.seed)
    helpers = [asyncio.create_task(watch.run()), asyncio.create_task(_report_forever(began, load, watch, progress))]
    if faults is not None:
        helpers.append(asyncio.create_task(faults.look_after()))
    try:
        async with AsyncExitStack() as stack:
            if faults is not None:
                await stack.enter_async_context(batches.running(2 * options.patience))
            async with load.running(), asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.sleep(options.seconds))
                if faults is not None:
                    tasks.create_task(faults.run(plan))
            load_seconds = time.monotonic() - began
        diary.note(f"the load ends, {watch.unsettled} tickets wait")
        settling = await all_settled(database_url, load.tally.contexts, options.patience)
        diary.note(f"settled after {settling:.2f} s")
    finally:
        for helper in helpers:
            helper.cancel()
        ended = await asyncio.gather(*helpers, return_exceptions=True)
    for each in ended:
        if not isinstance(each, asyncio.CancelledError):
            raise RuntimeError("a part of the kit failed") from each
    evidence = await collect(database_url, load.tally.contexts)
    verdict = judge(evidence, load.tally, watch.final)
    verdict.batches = len(batches.sent)
    verdict.batch_lines = sum(sent.lines for sent in batches.sent)
    verdict.batches_wrong = [f"{sent.id} {what}" for sent in batches.sent for what in wrong_with(sent)]
    if faults is not None:
        verdict.deaths, verdict.triton_deaths = faults.deaths, faults.triton_deaths
    for problem in verdict.problems:
        diary.note(problem)
    return Report(
        seed=options.seed,
        verdict=verdict,
        recoveries=recoveries(faults.struck if faults is not None else [], evidence, load.tally),
        load_seconds=load_seconds,
        rate=len(load.tally.acknowledged) / load_seconds,
        best_second=best_second(list(load.tally.acknowledged.values())),
        settling_seconds=settling,
    )


async def _ready(load: Load) -> None:
    """Waits for the API."""
    end = time.monotonic() + READY_SECONDS
    while True:
        with suppress(*GONE):
            return await load.prepare()
        if time.monotonic() > end:
            raise TimeoutError(f"the API did not answer within {READY_SECONDS:g} s")
        await asyncio.sleep(0.1)


async def _report_forever(began: float, load: Load, watch: Watch, progress: Progress) -> None:
    while True:
        progress(time.monotonic() - began, load, watch)
        await asyncio.sleep(0.5)
