"""One process decides at a time: it holds a lease in Postgres, and stops at once when the lease may be over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from app.background import ended
from app.errors import DatabaseUnavailable
from app.queue.leader import Leadership, LeaderStore, NotLeading
from app.telemetry import logger

log = logger("capacity")

# Of a lease: how often it is renewed, and after which part without renewal its holder stops.
RENEW_SHARE = 1 / 4
GIVE_UP_SHARE = 3 / 4


class Leader:
    def __init__(self, store: LeaderStore, holder: str, lease_seconds: float) -> None:
        self._store = store
        self._holder = holder
        self._lease = lease_seconds

    async def lead(self, work: Callable[[Leadership], Awaitable[None]]) -> None:
        """Does `work` whenever this process leads, for ever; work is cancelled when it does no longer.

        When it is cancelled itself, it lets go of the lease once `work` has ended.
        """
        while True:
            leadership = await self._take()
            if leadership is None:
                await asyncio.sleep(self._lease * RENEW_SHARE)
                continue
            log.info("leads", holder=self._holder, token=leadership.token)
            try:
                await self._while_renewed(leadership, work)
            except* NotLeading:
                log.warning("leads no longer", holder=self._holder, token=leadership.token)
            finally:
                with suppress(DatabaseUnavailable, TimeoutError):
                    async with asyncio.timeout(self._lease / 2):
                        await self._store.give_back(leadership.token)

    async def _take(self) -> Leadership | None:
        with suppress(DatabaseUnavailable):
            return await self._store.take(self._holder, self._lease)
        return None

    async def _while_renewed(self, leadership: Leadership, work: Callable[[Leadership], Awaitable[None]]) -> None:
        working = asyncio.ensure_future(work(leadership))
        renewing = asyncio.create_task(self._renew(leadership.token))
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await ended((working, renewing))
        for task in (working, renewing):
            if not task.cancelled():
                task.result()

    async def _renew(self, token: int) -> None:
        """Returns when the lease may be over: by this process's own clock, sooner than by the database's."""
        renewed = time.monotonic()
        while time.monotonic() - renewed < self._lease * GIVE_UP_SHARE:
            await asyncio.sleep(self._lease * RENEW_SHARE)
            asked = time.monotonic()
            with suppress(DatabaseUnavailable, TimeoutError):
                async with asyncio.timeout(self._lease * RENEW_SHARE):
                    if not await self._store.renew(token, self._lease):
                        return
                    renewed = asked
