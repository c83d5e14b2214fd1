"""A process that checks lines of batches: `python -m app.checker`, which an API starts and speaks to by its pipes."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import sys
import time
from dataclasses import dataclass
from threading import Thread
from typing import Any, NoReturn

from app.config import Settings
from app.openai.batch_lines import preparing
from app.prompts.adapters import Adapters
from app.prompts.parsers import Parsers
from app.prompts.profiles import Profiles
from app.prompts.templates import Templates
from app.prompts.tokenizers import Tokenizers
from app.services.catalog import CatalogEntry
from app.services.checkers import Work, serve
from app.services.line_checks import CheckedLine, LineChecks
from app.services.lines import Undecided
from app.services.repository import looked_at_once
from app.telemetry import configure_logging

WATCH_SECONDS = 1.0


class KnownModels:
    """What the API knew of the models when it sent a part; what else is asked is for the API to say."""

    def __init__(self) -> None:
        self.known: frozenset[str] = frozenset()
        self.take_messages: frozenset[str] = frozenset()

    def knows(self, name: str) -> bool:
        return name in self.known

    def takes_messages(self, name: str) -> bool:
        return name in self.take_messages

    async def names(self, *, fresh: bool = False) -> frozenset[str]:
        if fresh:
            raise Undecided
        return self.known

    async def models(self) -> list[CatalogEntry]:
        raise Undecided

    async def require(self, name: str) -> None:
        if name not in self.known:
            raise Undecided


class Elsewhere:
    """A service that only the API has."""

    def __getattr__(self, name: str) -> NoReturn:
        raise Undecided


@dataclass(frozen=True, slots=True)
class LineSources:
    settings: Settings
    catalog: KnownModels
    adapters: Adapters
    templates: Templates
    parsers: Parsers
    profiles: Profiles
    tokenizers: Tokenizers
    contexts: Any
    results: Any
    conversations: Any
    inputs: Any
    images: None = None


def sources_of(settings: Settings) -> LineSources:
    catalog, parsers, elsewhere = KnownModels(), Parsers(settings), Elsewhere()
    return LineSources(
        settings,
        catalog,
        Adapters(catalog, settings),
        Templates(settings),
        parsers,
        Profiles(settings, parsers),
        Tokenizers(settings),
        *(elsewhere, elsewhere, elsewhere, elsewhere),
    )


def _end_with_parent(parent: int) -> None:
    """The end of its pipe is seen between parts only, and a template may never end."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def main() -> None:
    # Whatever else writes to it goes to the log.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    settings: Settings = pickle.load(sys.stdin.buffer)  # noqa: S301 - it comes from the API that started this process
    configure_logging(settings.log_level)
    sources = sources_of(settings)
    prepare = preparing(sources)
    gc.freeze()

    async def check(work: Work) -> list[CheckedLine]:
        sources.catalog.known, sources.catalog.take_messages = work.known, work.take_messages
        checks = LineChecks(work.lines, prepare)
        with looked_at_once():
            return [await checks.check(work.part, place) for place in range(len(work.part.lines))]

    with asyncio.Runner() as runner:
        serve(lambda work: runner.run(check(work)), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
