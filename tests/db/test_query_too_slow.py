"""A list that Postgres cannot make in time ends with an error of its own, and gives its connection back."""

from __future__ import annotations

from collections.abc import Callable

import asyncpg
import pytest

from app.config import Settings
from app.db import engine
from app.db.engine import open_database
from tests.service import running_api

LISTS = {
    "results": "/results/?status=failed",
    "contexts": "/contexts/",
    "usage": "/usage",
    "files": "/v1/files?purpose=batch",
    "batches": "/v1/batches?status=failed",
}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "READING_SECONDS", 0.2)


async def test_a_list_that_takes_too_long_says_so(database_url: str, make_settings: Callable[..., Settings]) -> None:
    other = await asyncpg.connect(database_url)
    async with running_api(make_settings(database_pool_size=2)) as api:
        for table, path in LISTS.items():
            async with other.transaction():
                # Whoever reads the table waits, as for a statement that has very much to read.
                await other.execute(f"LOCK TABLE {table}")
                # The second one finds the connection free.
                for _ in range(2):
                    answer = await api.client.get(path)
                    assert answer.status_code == 503, answer.text
                    told = answer.json()
                    assert (told.get("error") or told)["code"] == "query_too_slow"
                    assert answer.headers["x-should-retry"] == "false"
            assert (await api.client.get(path)).status_code == 200, path
    await other.close()


async def test_a_time_limit_of_the_url_is_kept(database_url: str, make_settings: Callable[..., Settings]) -> None:
    async def limits(url: str) -> list[str]:
        question = "SELECT current_setting('statement_timeout')"
        async with (
            open_database(make_settings(database_url=url, database_pool_size=4)) as database,
            database.reading() as reading,
            database.changing() as changing,
            database.hot() as hot,
        ):
            return [await each.fetchval(question) for each in (reading._connection, changing._connection, hot)]

    assert await limits(database_url) == ["200ms", "0", "0"]
    assert await limits(database_url + "?options=-c%20statement_timeout%3D7s") == ["7s", "7s", "7s"]
