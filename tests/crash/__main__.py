"""Kill everything at random under load, then count.

CRASH_SEED repeats a schedule (the load's interleaving is the machine's own), CRASH_SECONDS (300) is how long it
lasts, CRASH_RATE (300) the tickets/s aimed at, CRASH_PATIENCE (120) the seconds the last ticket may take. With
CRASH_MIXED=1 llama.cpp's own HTTP server has one of the models as well, and is hit as the others are.

With CRASH_API_URL and CRASH_DATABASE_URL it only sends to that installation and checks it, and kills nothing:
that is left to you. CRASH_MODEL names the model. Its own limits apply: MAX_ATTEMPTS may well run out.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop
from rich.console import Console
from rich.live import Live
from rich.text import Text

from nvidia_triton.local.process import LocalError
from tests.crash.check import Watch
from tests.crash.kit import Diary, Options, crash, watch_only
from tests.crash.load import Load
from tests.crash.report import show
from tests.crash.schedule import draw
from tests.crash.stack import LEASE_SECONDS

PLAIN_LINE_SECONDS = 10.0


class Line:
    """One line that changes in place, or one every ten seconds where nobody watches."""

    def __init__(self, console: Console, diary: Diary, seconds: float) -> None:
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._console = console
        self._diary = diary
        self._seconds = seconds
        self._next = 0.0

    def __call__(self, elapsed: float, load: Load, watch: Watch) -> None:
        text = (
            f"{elapsed:5.0f}/{self._seconds:.0f} s  acknowledged {len(load.tally.acknowledged)}  "
            f"settled {len(watch.final)}  waiting {watch.unsettled}  {self._diary.last}"
        )
        if self.live is not None:
            self.live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif elapsed >= self._next:
            self._console.print(text, soft_wrap=True, highlight=False)
            self._next = elapsed + PLAIN_LINE_SECONDS


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m tests.crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    console = Console()
    seed = int(os.environ.get("CRASH_SEED") or random.randrange(1 << 32))
    options = Options(
        seed=seed,
        seconds=float(os.environ.get("CRASH_SECONDS") or 300),
        rate=float(os.environ.get("CRASH_RATE") or 300),
        patience=float(os.environ.get("CRASH_PATIENCE") or 120),
        mixed=os.environ.get("CRASH_MIXED") == "1",
    )
    api_url, database_url = os.environ.get("CRASH_API_URL"), os.environ.get("CRASH_DATABASE_URL")
    plan = [] if api_url else draw(seed, options.seconds, LEASE_SECONDS, mixed=options.mixed)
    console.print(f"CRASH_SEED={seed} CRASH_SECONDS={options.seconds:g}: {sum(map(len, plan))} blows", highlight=False)

    directory = Path(tempfile.mkdtemp(prefix="crash-"))
    diary = Diary(directory / "events.log")
    for blow in sorted((blow for lane in plan for blow in lane), key=lambda blow: blow.at):
        diary.note(f"planned: {blow.at:8.3f} {blow.kind} {blow.index}, for {blow.hold:.2f} s")
    line = Line(console, diary, options.seconds)
    if line.live is not None:
        line.live.start()
    failed = True
    try:
        if api_url and database_url:
            model = os.environ.get("CRASH_MODEL") or "demo"
            report = uvloop.run(watch_only(options, api_url, database_url, model, diary, line))
        else:
            report = uvloop.run(crash(options, plan, directory, diary, line))
        failed = bool(report.problems)
    except LocalError as error:
        console.print(f"The stack does not start: {error}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if line.live is not None:
            line.live.stop()
        diary.close()
        if not failed:
            # The logs of the processes only matter where something is to be explained.
            for path in directory.iterdir():
                if path != diary.path:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        console.print(f"Events: {diary.path}" + (", and the logs beside it" if failed else ""), soft_wrap=True)
    show(report, console)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
