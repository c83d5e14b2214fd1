"""A ticket is stored while its context is being removed: one of the two loses, and says so."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.config import Settings
from app.db.engine import open_database
from app.db.ids import lowest_at, uuid7
from app.queue.store import QueueStore
from app.queue.ticket import Submission
from tests.service import Service, eventually

PAUSE = 4711


async def waiting_for_a_lock(rows: Any) -> bool:
    return bool(
        await rows.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )


async def stored_context(rows: Any) -> UUID:
    id_ = uuid7()
    await rows.execute("INSERT INTO contexts (id, content) VALUES ($1, 'prompt')", id_)
    return id_


async def test_the_retention_leaves_a_context_that_got_a_ticket_after_it_began_to_look(
    rows: Any, database_url: str, store: QueueStore, make_settings: Callable[..., Settings]
) -> None:
    """A role of its own, whose every look at a context waits for the test."""
    role = f"retention_{uuid4().hex}"
    await rows.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};"
        "CREATE FUNCTION paused() RETURNS bool LANGUAGE plpgsql AS"
        f" $$BEGIN PERFORM pg_advisory_xact_lock_shared({PAUSE}); RETURN true; END$$;"
        "ALTER TABLE contexts ENABLE ROW LEVEL SECURITY;"
        f"CREATE POLICY slow ON contexts TO {role} USING (paused())"
    )
    try:
        context = await stored_context(rows)
        await rows.execute("SELECT pg_advisory_lock($1)", PAUSE)
        address = database_url.split("@", 1)[1]
        async with open_database(make_settings(database_url=f"postgresql://{role}:x@{address}")) as database:
            tomorrow = lowest_at(datetime.now(UTC) + timedelta(days=1))
            removing = asyncio.create_task(QueueStore(database).remove_contexts(UUID(int=0), tomorrow, 10))
            await eventually(lambda: waiting_for_a_lock(rows), "the retention looks")
            now = datetime.now(UTC)
            ticket = Submission(uuid7(), context, "m", {}, 0, now, now)
            assert await store.submit([ticket]) == {ticket.id}
            await rows.execute("SELECT pg_advisory_unlock($1)", PAUSE)
            await removing
        assert await rows.fetchval("SELECT context_id FROM results WHERE id = $1", ticket.id) == context
        assert await rows.fetchval("SELECT count(*) FROM contexts") == 1
    finally:
        await rows.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "once"}])
async def test_a_send_that_meets_the_delete_of_its_context_is_a_404(
    api: Service, rows: Any, headers: dict[str, str]
) -> None:
    context = await api.context()
    deleting = rows.transaction()
    await deleting.start()
    await rows.execute("DELETE FROM contexts WHERE id = $1", UUID(context))
    sending = asyncio.create_task(api.client.post(f"/models/send/tiny/{context}", json={}, headers=headers))
    beside = await asyncpg.connect(api.settings.database_url)
    await eventually(lambda: waiting_for_a_lock(beside), "the send waits for the delete")
    await beside.close()
    await deleting.commit()
    answer = await sending
    assert (answer.status_code, answer.json()["code"]) == (404, "context_not_found")


async def test_a_send_that_meets_a_delete_that_comes_to_nothing_goes_on(api: Service, rows: Any) -> None:
    context = await api.context()
    deleting = rows.transaction()
    await deleting.start()
    await rows.execute("DELETE FROM contexts WHERE id = $1", UUID(context))
    sending = asyncio.create_task(api.client.post(f"/models/send/tiny/{context}", json={}))
    beside = await asyncpg.connect(api.settings.database_url)
    await eventually(lambda: waiting_for_a_lock(beside), "the send waits for the delete")
    await beside.close()
    await deleting.rollback()
    assert (await sending).status_code == 202
