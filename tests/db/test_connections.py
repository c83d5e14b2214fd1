"""Connections go from one statement to the next without the pool, and back to it when others wait or they are old."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.config import Settings
from app.db import engine
from app.db.engine import Database, open_database
from tests.service import eventually

MINE = "SELECT pg_backend_pid()"


async def backend(database: Database) -> int:
    async with database.hot() as connection:
        return int(await connection.fetchval(MINE))


async def test_the_next_statement_has_the_same_connection_until_that_is_old(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await backend(database)
    assert [await backend(database) for _ in range(3)] == [first] * 3
    assert database.pool.get_idle_size() == 0
    monkeypatch.setattr(engine, "KEPT_SECONDS", 0.0)
    await backend(database)
    assert database.pool.get_idle_size() == 1


async def test_more_users_than_connections_each_get_one(make_settings: Callable[..., Settings]) -> None:
    async with open_database(make_settings(database_pool_size=2)) as database:
        await asyncio.gather(*(backend(database) for _ in range(2)))

        async def work() -> None:
            for _ in range(5):
                async with database.hot() as connection:
                    await connection.fetchval("SELECT pg_sleep(0.001)")
                async with database.transaction() as connection:
                    await connection.fetchval("SELECT 1")

        async with asyncio.timeout(30):
            await asyncio.gather(*(work() for _ in range(20)))
        assert database.pool.get_size() == 2


async def test_one_that_was_lost_between_two_statements_is_not_used(database: Database, rows: Any) -> None:
    lost = await backend(database)
    await rows.fetchval("SELECT pg_terminate_backend($1, 30000)", lost)

    async def left() -> bool:
        return database.pool.get_size() == 0

    await eventually(left, "the end of the connection arrives")
    assert await backend(database) != lost


async def test_one_that_is_left_in_a_transaction_or_a_statement_is_not_kept(database: Database) -> None:
    async with database.hot() as connection:
        await connection.execute("BEGIN")
    assert database.pool.get_idle_size() == 1
    async with database.hot() as connection:
        assert not connection.is_in_transaction()

    async def sleep() -> None:
        async with database.hot() as connection:
            await connection.fetchval("SELECT pg_sleep(300)")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sleep(), 0.05)
    assert await backend(database)
