"""The slots of servers that this process has, kept in Postgres: all dispatchers together keep to their number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from app.errors import DatabaseUnavailable
from app.fleet.fleet import Fleet
from app.fleet.lanes import Lane
from app.fleet.turnover import most_ahead
from app.queue.slots import Ended, Slot, SlotStore
from app.queue.ticket import Claim, Release, Settlement

RETRY_SECONDS = 0.5
AT_ONCE = 500
# What ends within this time is given back together. Until then this process's own claims use it all the same.
PAUSE_SECONDS = 0.01


class Slots:
    """`freed` is called when slots have been given back."""

    def __init__(self, store: SlotStore, fleet: Fleet, lease_seconds: float, freed: Callable[[], None]) -> None:
        self._store = store
        self._fleet = fleet
        self._lease_seconds = lease_seconds
        self._freed = freed
        self._ended: dict[UUID, Ended] = {}
        self._filled = asyncio.Event()

    @property
    def ended(self) -> list[UUID]:
        """The claims whose runs have ended and whose slots are not given back yet."""
        return list(self._ended)

    async def offer(self, lanes: Sequence[Lane]) -> list[tuple[str, str, int, int]]:
        """(model, server, concurrency, ahead) for each of the lanes; sees to it that they have slots in Postgres.

        Raises:
            DatabaseUnavailable: Postgres is out of reach.
        """
        missing = {}
        for lane in lanes:
            concurrency = self._fleet.concurrency_of(lane.server)
            # For as many ahead as there can be.
            most = concurrency + most_ahead(concurrency)
            if lane.slots_made < most:
                missing[lane] = most
        if missing:
            await self._store.make([(lane.server.url, lane.model, most) for lane, most in missing.items()])
            for lane, most in missing.items():
                lane.slots_made = most
        bounds = {lane: (self._fleet.concurrency_of(lane.server), self._fleet.ahead_of(lane)) for lane in set(lanes)}
        return [(lane.model, lane.server.url, *bounds[lane]) for lane in lanes]

    async def renew(self, claims: Iterable[Claim]) -> None:
        """Raises DatabaseUnavailable."""
        if held := [slot for claim in claims if (slot := _slot_of(claim)) is not None]:
            await self._store.renew(held, self._lease_seconds)

    def end(self, claim: Claim, end: Settlement | Release | None) -> None:
        """The run of the claim has ended, so that its slot is free; None where the lease was lost."""
        slot = _slot_of(claim)
        if slot is None:
            return
        if isinstance(end, Settlement):
            # What failed for good may well be the request's fault: no error.
            answer = end.answer
            tokens = answer.prompt_tokens or 0, answer.completion_tokens or 0
            ended = Ended(slot, end.attempt_spent, *tokens, end.gpu_seconds, end.cost)
        elif isinstance(end, Release):
            spent = end.attempt_spent
            ended = Ended(slot, spent, 0, 0, end.gpu_seconds, end.cost, end.error_code, end.error_message)
        else:
            ended = Ended(slot)
        self._ended[claim.token] = ended
        self._filled.set()

    async def run(self) -> None:
        """Gives slots back until cancelled; many at once under load."""
        while True:
            await self._filled.wait()
            await asyncio.sleep(PAUSE_SECONDS)
            if not await self.flush():
                await asyncio.sleep(RETRY_SECONDS)

    async def flush(self) -> bool:
        """Gives back what has ended; False while Postgres is away."""
        while self._ended:
            batch = dict(list(self._ended.items())[:AT_ONCE])
            try:
                await self._store.end(list(batch.values()))
            except DatabaseUnavailable:
                return False
            for token in batch:
                self._ended.pop(token, None)
            self._freed()
        self._filled.clear()
        return True


def _slot_of(claim: Claim) -> Slot | None:
    return None if claim.slot is None else Slot(claim.server, claim.model, claim.slot, claim.token)
