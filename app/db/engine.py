"""Connections to Postgres: SQLAlchemy where queries are composed, plain asyncpg where they are hot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
from pydantic_core import from_json, to_json
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as SQLTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.config import Settings
from app.errors import DatabaseUnavailable

# Waiting for a connection of the pool is no sign of a lost database, unless it lasts.
ACQUIRE_SECONDS = 30
# Fixed statements with arrays: planning them anew each time costs more than running them, and compiling them many times
# more still. A plan that is kept outlives the state of the tables it was made for, so reading a whole one, which is
# right while it is empty, must not be among its choices.
HOT_SETTINGS = {"plan_cache_mode": "force_generic_plan", "jit": "off", "enable_seqscan": "off"}
# Plans are made anew this often, so that they follow the tables' growth.
PLAN_SECONDS = 60

Pool = Any  # asyncpg.Pool[asyncpg.Record]; asyncpg's generics differ between releases

# What a lost, refused or restarting server looks like, from asyncpg and from the socket.
CONNECTION_ERRORS: tuple[type[BaseException], ...] = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
# SQLSTATE classes, and codes, of a server that cannot do its work now but may later: connection, authorization, unknown
# database, rollback (deadlock), resources, object state, intervention, system, internal; and a read-only transaction,
# as during a failover.
PASSING_CLASSES = frozenset({"08", "28", "3D", "40", "53", "55", "57", "58", "XX"})
PASSING_CODES = frozenset({"25006"})


async def set_codecs(connection: Any) -> None:
    """JSONB travels as Python values in both directions."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + to_json(value),
        decoder=lambda data: from_json(data[1:]),
        format="binary",
    )


async def _keep(_connection: Any) -> None:
    """Single statements in autocommit leave nothing to reset, and the round trip is saved."""


@dataclass(frozen=True)
class Database:
    """The two pools of a process."""

    engine: AsyncEngine
    pool: Pool

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for composed queries.

        Raises:
            DatabaseUnavailable: Postgres cannot be reached.
        """
        with translated_errors():
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[Any]:
        """A plain asyncpg connection in autocommit.

        Raises:
            DatabaseUnavailable: Postgres cannot be reached, or was lost in the middle of a statement.
        """
        with translated_errors(stored_nothing=True):
            connection = await self.pool.acquire(timeout=ACQUIRE_SECONDS)
        try:
            with translated_errors():
                yield connection
        except DatabaseUnavailable:
            # Its protocol may be left in the middle of a message; one that noticed has left the pool by itself.
            with suppress(asyncpg.InterfaceError):
                connection.terminate()
            raise
        finally:
            await self.pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """As `hot`, in a transaction that is committed at the end.

        One that is left in the middle is gone, and so is its connection, which may be in the middle of a COPY.
        """
        async with self.hot() as connection:
            try:
                async with connection.transaction():
                    yield connection
            except BaseException:
                with suppress(asyncpg.InterfaceError):
                    connection.terminate()
                raise


@contextmanager
def translated_errors(*, stored_nothing: bool = False) -> Iterator[None]:
    """Turns what says that Postgres cannot serve now into DatabaseUnavailable."""
    try:
        yield
    except Exception as error:
        if is_passing(error):
            raise DatabaseUnavailable(stored_nothing=stored_nothing) from error
        raise


def is_passing(error: BaseException) -> bool:
    """Whether Postgres, not the statement, is in trouble."""
    if isinstance(error, DBAPIError):
        cause = error.orig.__cause__ if error.orig is not None else None
        return error.connection_invalidated or (cause is not None and is_passing(cause))
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state[:2] in PASSING_CLASSES or state in PASSING_CODES
    return isinstance(error, (*CONNECTION_ERRORS, SQLTimeoutError))


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Opens both pools lazily: a Postgres that is down delays requests, not the start."""
    engine = create_async_engine(
        settings.sqlalchemy_url,
        pool_size=max(1, settings.database_pool_size // 2),
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args={"timeout": 5, "command_timeout": 30},
        json_serializer=lambda value: to_json(value).decode(),
        json_deserializer=from_json,
    )
    pool = asyncpg.create_pool(
        settings.database_url,
        min_size=0,
        max_size=max(1, settings.database_pool_size - settings.database_pool_size // 2),
        timeout=5,
        command_timeout=30,
        init=set_codecs,
        server_settings=HOT_SETTINGS,
        max_cached_statement_lifetime=PLAN_SECONDS,
        reset=_keep,
        max_inactive_connection_lifetime=300,
    )
    # A pool without minimum connects on first use only.
    await pool
    try:
        yield Database(engine, pool)
    finally:
        await engine.dispose()
        try:
            await asyncio.wait_for(pool.close(), 5)
        except CONNECTION_ERRORS:
            pool.terminate()
