"""Slots on their way back into Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from app.background import ended
from app.config import Settings
from app.db.engine import Database
from app.db.tables.contexts import Prompt
from app.dispatch.slots import Slots
from app.fleet.fleet import open_fleet
from app.queue.slots import SlotStore
from app.queue.ticket import Claim, Outcome, Release
from tests.service import eventually

SERVER, MODEL = "s:1", "m"
GIVEN_BACK = "SELECT attempts FROM server_slots ORDER BY number"


def claim_of(slot: int) -> Claim:
    return Claim(uuid4(), uuid4(), MODEL, {}, token=uuid4(), server=SERVER, prompt=Prompt("x"), attempt=1, slot=slot)


async def test_slots_that_end_one_after_the_other_are_given_back_by_one_statement(
    database: Database, rows: Any, make_settings: Callable[..., Settings]
) -> None:
    store = SlotStore(database)
    await store.make([(SERVER, MODEL, 3)])
    statements: list[int] = []
    async with open_fleet(make_settings()) as fleet:
        slots = Slots(store, fleet, 60, lambda: statements.append(len(slots.ended)))
        task = asyncio.create_task(slots.run())
        claims = [claim_of(slot) for slot in range(3)]
        for claim in claims:
            slots.end(claim, Release(claim.id, claim.token, Outcome.RETRIED, SERVER, 0.0, True))
            # Claims of this process have them meanwhile.
            assert slots.ended[-1] == claim.token
            await asyncio.sleep(0)

        async def given_back() -> bool:
            return [row["attempts"] for row in await rows.fetch(GIVEN_BACK)] == [1, 1, 1]

        await eventually(given_back, "the slots are given back")
        await ended([task])
    assert statements == [0]
