"""Runs the migrations against DATABASE_URL, one process at a time."""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.config import load_settings
from app.db.connect import Connector
from app.db.tables import metadata
from app.queue import locks

DIALECT = "postgresql+asyncpg://"


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, compare_type=True)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": locks.MIGRATION})
        context.run_migrations()


async def _online() -> None:
    connector = Connector(load_settings().listen_arguments)
    engine = create_async_engine(DIALECT, poolclass=pool.NullPool, async_creator=connector.open)
    async with engine.connect() as connection:
        await connection.run_sync(_migrate)
        await connection.commit()
    await engine.dispose()


if context.is_offline_mode():
    context.configure(url=DIALECT, target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(_online())
