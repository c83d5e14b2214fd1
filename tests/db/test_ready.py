"""Statements of a ticket are planned before one comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.background import ended
from app.config import Settings
from app.db import engine
from app.db.engine import Database, open_database
from app.queue.planned import DISPATCHING, SUBMITTING
from app.services.results import READING
from tests.service import eventually

PLANNED = "SELECT statement, generic_plans FROM pg_prepared_statements"


@pytest.mark.parametrize("statements", [[*SUBMITTING, READING], DISPATCHING])
async def test_each_connection_at_hand_has_the_plans_and_nothing_is_changed(
    database: Database, rows: Any, statements: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "KEPT_SECONDS", 0.2)
    task = asyncio.create_task(database.keep_ready(statements))

    async def planned() -> bool:
        if database.pool.get_size() < engine.READY_CONNECTIONS:
            return False
        for _ in range(engine.READY_CONNECTIONS):
            # Takes each in turn: the one that was used longest ago.
            connection, since = database._kept.pop(0) if database._kept else (None, 0.0)
            if connection is None:
                return False
            found = dict(await connection.fetch(PLANNED))
            await database.give_back(connection, since)
            if not all(found.get(statement) for statement, _ in statements):
                return False
        return True

    try:
        await eventually(planned, "the plans are made")
        # It keeps to so many.
        assert database.pool.get_size() <= engine.READY_CONNECTIONS + 1
        for table in ("results", "contexts", "attempts", "usage", "idempotency_keys"):
            assert await rows.fetchval(f"SELECT count(*) FROM {table}") == 0
    finally:
        await ended([task])


async def test_half_of_a_small_pool_is_left_to_others(
    make_settings: Callable[..., Settings], rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "KEPT_SECONDS", 0.02)
    await rows.execute("CREATE SEQUENCE rounds")
    async with open_database(make_settings(database_pool_size=2)) as database:
        task = asyncio.create_task(database.keep_ready([("SELECT nextval('rounds')", [])]))

        async def repeated() -> bool:
            return int(await rows.fetchval("SELECT last_value FROM rounds")) > 4

        await eventually(repeated, "it goes on", seconds=10)
        assert database.pool.get_size() == 1
        await ended([task])
