"""Final tickets by words and properties, from the index of them: span of time by span, the newest first."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from app.db.engine import Database
from app.db.ids import lowest_at, time_of
from app.queue.words import SPANS, Wanted, WordStore

# So long a search goes back in time; what is older is another search.
MAX_SECONDS = 0.1
# After a look as quick as this the next one is at a longer span, and after one as slow as this at a shorter one.
QUICK_SECONDS, SLOW_SECONDS = 0.005, 0.04
# As many of a span are looked at together as make up the next longer one.
TOGETHER = 8
CLOCKS_APART = timedelta(hours=1)
FINAL = ("completed", "failed")
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class FoundIds:
    """The newest first; `looked_back_to` is how far, None where nothing older is left."""

    ids: list[UUID]
    looked_back_to: datetime | None


class TicketWords:
    def __init__(self, database: Database) -> None:
        self._store = WordStore(database)

    async def newest(self, wanted: Wanted, limit: int, *, final: bool = True) -> FoundIds:
        """No more than `limit`; none that is older than `looked_back_to`. Those that are not final alone without."""
        ids: list[UUID] = []

        async def look(bits: int, spans: range) -> bool:
            ids.extend(await self._store.newest(wanted, bits, spans, limit - len(ids)))
            return len(ids) >= limit

        until = await looked_back(await self._bounded(wanted), look) if final else None
        rest = (await self._store.rest(wanted, patterns(wanted.text), limit)).ids
        if until is not None:
            rest = [id_ for id_ in rest if id_ >= lowest_at(until)]
        ids = sorted({*ids, *rest}, reverse=True)[:limit]
        return FoundIds(ids, None if len(ids) == limit else until)

    async def count(self, wanted: Wanted, most: int, *, final: bool = True) -> tuple[int, bool]:
        """How many there are, up to more than `most`; False where there may be more of what was not looked at."""
        number = 0

        async def look(bits: int, spans: range) -> bool:
            nonlocal number
            number += await self._store.count(wanted, bits, spans, most + 1 - number)
            return number > most

        until = await looked_back(await self._bounded(wanted), look) if final else None
        if number > most:
            return number, True
        rest = await self._store.rest(wanted, patterns(wanted.text))
        all_ended = (until is None and rest.all_ended) or not final
        return number + len(rest.ids), all_ended and (rest.all_pending or wanted.state in FINAL)

    async def _bounded(self, wanted: Wanted) -> Wanted:
        """Nothing is looked for in the time before the owner's oldest ticket."""
        oldest = await self._store.oldest(wanted.owner_id)
        return wanted if oldest is None else replace(wanted, lowest=max(wanted.lowest, oldest))


async def looked_back(wanted: Wanted, look: Callable[[int, range], Awaitable[bool]]) -> datetime | None:
    """Looks at span after span until one says that it is enough; returns how far it came where time was up."""
    began = time.monotonic()
    end, first = ((wanted.below.int - 1) >> 80 + SPANS[0]) + 1, wanted.lowest.int >> 80 + SPANS[0]
    level = 0
    while end > first:
        width = TOGETHER**level
        started = time.monotonic()
        last = end // width
        # Up to where a longer span begins.
        spans = range((last - 1) // TOGETHER * TOGETHER, last)
        if await look(SPANS[level], spans):
            return None
        end = spans.start * width
        now = time.monotonic()
        if now - began > MAX_SECONDS and end > first:
            return time_of(UUID(int=(end << SPANS[0]) << 80))
        took = now - started
        if took < QUICK_SECONDS and level + 1 < len(SPANS):
            level += 1
        elif took > SLOW_SECONDS and level:
            level -= 1
    return None


def upper_bound(before: UUID | None, until: datetime | None) -> UUID:
    """Of the ids that are searched. Where nothing bounds them, clocks may be CLOCKS_APART."""
    highest = lowest_at(datetime.now(UTC) + CLOCKS_APART if until is None else until)
    return highest if before is None else min(before, highest)


def has_words(text: str) -> bool:
    return bool(WORD.search(text))


def patterns(text: str | None) -> list[str]:
    """What a text has in it, as LIKE takes it, that has all words of this one."""
    return [f"%{word}%" for word in WORD.findall(text or "")]
