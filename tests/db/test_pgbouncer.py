"""The whole service through a real PgBouncer, in both of the modes that people run it in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from app.config import Settings
from app.db.engine import open_database
from app.db.faults import DatabaseFault
from app.services.health import require_database
from tests.conftest import alembic
from tests.db.bouncer import ADVICE, PREPARED_SINCE, pgbouncer, program, version
from tests.service import Service, running_api, running_dispatcher

pytestmark = pytest.mark.skipif(program() is None, reason=ADVICE)

TICKETS = 200
# Users at a time: who waits half a minute for one of the pool's connections is told to come back, which is right, and
# all at once they would on a machine that has other work.
USERS = 20
# Few server connections for many clients: each statement may meet another one than the statement before.
FEW = {"default_pool_size": "3", "min_pool_size": "3", "server_round_robin": "1"}
needs_prepared = pytest.mark.skipif(
    version() < PREPARED_SINCE,
    reason="prepared statements in transaction mode need PgBouncer 1.21 or later: name such a program in PGBOUNCER",
)


@pytest.fixture(params=["session", "transaction", pytest.param("prepared", marks=needs_prepared)])
def pooled(request: pytest.FixtureRequest, database_url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kind of PgBouncer, and the settings to use it with."""
    kind = str(request.param)
    if kind == "session":
        with pgbouncer(database_url, "session", default_pool_size="60") as url:
            yield kind, {"database_url": url}
        return
    newer = {} if version() < PREPARED_SINCE else {"max_prepared_statements": "200" if kind == "prepared" else "0"}
    with pgbouncer(database_url, "transaction", **FEW, **newer) as url:
        yield kind, {"database_url": url, "database_listen_url": database_url}


async def test_two_hundred_tickets(pooled: tuple[str, dict[str, Any]], make_settings: Callable[..., Settings]) -> None:
    """All complete, waiting clients are woken, and lists, streams and deletes work beside them."""
    _, changes = pooled
    async with AsyncExitStack() as stack:
        # All connect at once, and each computes a SCRAM proof: that takes longer where others load the machine.
        url = changes["database_url"] + "?connect_timeout=30"
        settings = make_settings(**{**changes, "database_url": url})
        service: Service = await stack.enter_async_context(running_api(settings))
        await stack.enter_async_context(running_dispatcher(settings))
        await service.run(model="noop", max_tokens=1)
        users = asyncio.Semaphore(USERS)

        async def send() -> str:
            async with users:
                return await service.send(model="noop", parameters={"max_tokens": 1})

        tickets = await asyncio.gather(*(send() for _ in range(TICKETS)))
        done = await asyncio.gather(*(service.settled(ticket, 240) for ticket in tickets))
        assert [result["status"] for result in done] == ["completed"] * TICKETS
        pages = await asyncio.gather(*(service.client.get("/results/?limit=50") for _ in range(20)))
        assert {page.status_code for page in pages} == {200}
        deleted = await asyncio.gather(
            *(service.client.delete(f"/contexts/{each['context_id']}") for each in done[:40])
        )
        assert {answer.status_code for answer in deleted} == {204}
        assert len(await service.attempts(tickets[-1])) == 1
        assert (await service.client.get("/health/ready")).status_code == 200


async def test_each_statement_has_the_plans_it_needs_and_no_session_keeps_them(
    pooled: tuple[str, dict[str, Any]], make_settings: Callable[..., Settings]
) -> None:
    kind, changes = pooled
    url = changes["database_url"] + "?application_name=us&options=-c%20statement_timeout%3D77s"
    settings = make_settings(**{**changes, "database_url": url})
    question = "SELECT current_setting($1)"
    async with open_database(settings) as database:

        async def setting(name: str) -> str:
            async with database.hot() as connection:
                return str(await connection.fetchval(question, name))

        names = ["plan_cache_mode", "enable_seqscan", "jit", "statement_timeout", "application_name"]
        told = await asyncio.gather(*(setting(name) for name in names * 10))
        assert told == ["force_generic_plan", "off", "off", "77s", "us"] * 10
    if kind != "session":
        # Another program that shares the server connections.
        plain = make_settings(**changes)
        async with open_database(plain) as other:
            async with other.transaction() as connection:
                assert await connection.fetchval(question, "statement_timeout") == "0"
            pool_connections = [await other.pool.acquire() for _ in range(3)]
            for each in pool_connections:
                assert await each.fetchval("SELECT current_setting('plan_cache_mode')") == "auto"
                await other.pool.release(each)


@pytest.mark.parametrize("kind", ["transaction", pytest.param("prepared", marks=needs_prepared)])
async def test_prepared_statements_are_kept_where_the_pooler_carries_them(
    kind: str, database_url: str, make_settings: Callable[..., Settings]
) -> None:
    newer = {} if version() < PREPARED_SINCE else {"max_prepared_statements": "200" if kind == "prepared" else "0"}
    with pgbouncer(database_url, "transaction", **FEW, **newer) as url:
        settings = make_settings(database_url=url, database_listen_url=database_url)
        async with open_database(settings) as database:
            for _ in range(2):
                async with database.hot() as connection:
                    await connection.fetchval("SELECT 4711")
            async with database.hot() as connection:
                kept = await connection.fetchval(
                    "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 4711'"
                )
    assert bool(kept) == (kind == "prepared")


async def test_migrations_go_round_the_pooler(postgres: Any, template: str, database_url: str) -> None:
    with pgbouncer(database_url, "transaction", **FEW) as url:
        done = await asyncio.to_thread(alembic, url, "current", DATABASE_LISTEN_URL=database_url)
    assert done.returncode == 0, done.stderr
    assert "head" in done.stdout


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_transaction_mode_without_a_url_to_listen_is_named_at_the_start(
    mode: str, database_url: str, make_settings: Callable[..., Settings]
) -> None:
    with pgbouncer(database_url, mode) as url:
        settings = make_settings(database_url=url)
        if mode == "session":
            await require_database(settings)
            return
        for _ in range(3):
            with pytest.raises(DatabaseFault, match="set DATABASE_LISTEN_URL"):
                await require_database(settings)
