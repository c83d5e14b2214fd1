"""Runs the migrations beside live traffic, one process at a time; docs/migrations.md says how.

They go to DATABASE_LISTEN_URL where it is set, else to DATABASE_URL.
"""

import asyncio
import sys
import time

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.config import SettingsError, load_settings
from app.db.connect import Connector
from app.db.faults import DATABASE_FAULT, diagnose, is_unavailable
from app.db.tables import metadata
from app.queue import locks
from migrations.online import LOCK_TIMEOUT

DIALECT = "postgresql+asyncpg://"
# A table that somebody holds for longer than this is for a person to look at.
PATIENCE_SECONDS = 600.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 10.0
# Lock not available, deadlock, serialization failure: what another try can get past.
AGAIN = frozenset({"55P03", "40P01", "40001"})
# Whoever holds a lock for long is in a transaction that began before the last try.
HOLDERS = f"""
SELECT string_agg(format('pid %s (%s, %s, for %s s)', pid, concat_ws(' ', usename, application_name), state,
    extract(epoch FROM now() - xact_start)::int), ', ' ORDER BY xact_start)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start < now() - interval '{LOCK_TIMEOUT}'
"""


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=metadata, compare_type=True, transaction_per_migration=True
    )
    with context.begin_transaction():
        context.run_migrations()


async def _take_turn(connection: AsyncConnection) -> None:
    """One at a time. It is asked for again and again: a waiting statement would hold up an index that is built."""
    while not await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": locks.MIGRATION}):
        await connection.commit()
        await asyncio.sleep(FIRST_PAUSE_SECONDS)
    await connection.commit()


async def _migrate_patiently(connection: AsyncConnection) -> None:
    """Each revision is a transaction of its own, so that a try goes on where the last one stopped."""
    end, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        try:
            await connection.run_sync(_migrate)
            await connection.commit()
            return
        except DBAPIError as error:
            await connection.rollback()
            if getattr(error.orig, "sqlstate", None) not in AGAIN:
                raise
        holders = await connection.scalar(text(HOLDERS)) or "nobody who is still there"
        await connection.commit()
        if time.monotonic() > end:
            sys.exit(
                f"The migrations gave up after {PATIENCE_SECONDS:.0f} s: a table they change is held by {holders}. End "
                "that transaction, for example with SELECT pg_terminate_backend(pid), and run them again."
            )
        print(f"A table is held by {holders}; trying again in {pause:.0f} s.", file=sys.stderr, flush=True)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def _online(connector: Connector) -> None:
    try:
        (await connector.open()).terminate()
    except Exception as error:
        if not is_unavailable(error):
            raise
        print(f"The migrations cannot run: {diagnose(error).sentence}", file=sys.stderr)
        sys.exit(DATABASE_FAULT)
    engine = create_async_engine(DIALECT, poolclass=pool.NullPool, async_creator=connector.open)
    async with engine.connect() as connection:
        await _take_turn(connection)
        await _migrate_patiently(connection)
    await engine.dispose()


if context.is_offline_mode():
    context.configure(url=DIALECT, target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    try:
        arguments = load_settings().listen_arguments
    except SettingsError as wrong:
        sys.exit(f"The migrations cannot run: {wrong}")
    asyncio.run(_online(Connector(arguments, {"lock_timeout": LOCK_TIMEOUT})))
