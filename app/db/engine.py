"""Connections to Postgres: SQLAlchemy where queries are composed, plain asyncpg where they are hot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from pydantic_core import from_json, to_json
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.config import Settings
from app.errors import DatabaseUnavailable

Pool = Any  # asyncpg.Pool[asyncpg.Record]; asyncpg's generics differ between releases

# What a lost, refused or restarting server looks like, from asyncpg and from the socket.
CONNECTION_ERRORS: tuple[type[BaseException], ...] = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.TooManyConnectionsError,
    asyncpg.exceptions.InvalidAuthorizationSpecificationError,
    asyncpg.exceptions.InvalidCatalogNameError,
)


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
    url: str

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
            DatabaseUnavailable: Postgres cannot be reached.
        """
        with translated_errors():
            async with self.pool.acquire(timeout=5) as connection:
                try:
                    yield connection
                except CONNECTION_ERRORS:
                    # Its protocol may be left in the middle of a message.
                    connection.terminate()
                    raise


class translated_errors:
    """Turns a lost connection into DatabaseUnavailable."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, asyncio.CancelledError):
            return
        if is_connection_error(error):
            raise DatabaseUnavailable from error


def is_connection_error(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        return (
            error.connection_invalidated
            or isinstance(error, (InterfaceError, OperationalError))
            or isinstance(error.__cause__, CONNECTION_ERRORS)
        )
    return isinstance(error, CONNECTION_ERRORS)


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Opens both pools lazily: a Postgres that is down delays requests, not the start."""
    engine = create_async_engine(
        settings.sqlalchemy_url,
        pool_size=max(1, settings.database_pool_size // 2),
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args={"timeout": 5},
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
        reset=_keep,
        max_inactive_connection_lifetime=300,
    )
    # A pool without minimum connects on first use only.
    await pool
    try:
        yield Database(engine, pool, settings.database_url)
    finally:
        await engine.dispose()
        try:
            await asyncio.wait_for(pool.close(), 5)
        except CONNECTION_ERRORS:
            pool.terminate()
