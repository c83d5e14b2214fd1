"""The one pool of a process: fixed statements in autocommit, composed ones in a transaction with plans of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any

import asyncpg

from app.config import Settings
from app.db.connect import Connector, set_config
from app.db.faults import CONNECTION_ERRORS, is_unavailable
from app.db.queries import Queries
from app.errors import DatabaseUnavailable, QueryTooSlow
from app.telemetry import logger
from app.telemetry.metrics import DATABASE_FAULTS

log = logger("database")

# Waiting for a connection of the pool is no sign of a lost database, unless it lasts.
ACQUIRE_SECONDS = 30
# Those who ask for lists are told sooner, and take half of the pool at most.
COMPOSED_SECONDS = 5
# A statement that looks for what a list shows is stopped after so long, where DATABASE_URL has no limit of its own.
READING_SECONDS = 10.0
# Fixed statements with arrays: planning them anew each time costs more than running them, and compiling them many times
# more still. A plan that is kept outlives the state of the tables it was made for, so reading a whole one, which is
# right while it is empty, must not be among its choices.
HOT_SETTINGS = {"plan_cache_mode": "force_generic_plan", "jit": "off", "enable_seqscan": "off"}
# A composed statement is planned for its values.
COMPOSED_SETTINGS = {"plan_cache_mode": "force_custom_plan", "jit": "off", "enable_seqscan": "on"}

Pool = Any  # asyncpg.Pool[asyncpg.Record]; asyncpg's generics differ between releases


async def _keep(_connection: Any) -> None:
    """Single statements in autocommit leave nothing to reset, and the round trip is saved."""


class Database:
    """The pool of a process.

    Behind a pooler in transaction mode (`pooled`) what is autocommit elsewhere is a transaction, which sets what the
    session would have kept; and statement by statement it stays on one server connection.
    """

    def __init__(self, pool: Pool, connector: Connector, size: int, *, pooled: bool) -> None:
        self.pool = pool
        self._composed = asyncio.Semaphore(max(1, size // 2))
        ours = {name: value for name, value in connector.settings.items() if name not in COMPOSED_SETTINGS}
        composed = {**(ours if pooled else {}), **COMPOSED_SETTINGS}
        limit = {} if "statement_timeout" in ours else {"statement_timeout": f"{READING_SECONDS * 1000:.0f}ms"}
        self._begin_reading = f"BEGIN READ ONLY; {set_config({**composed, **limit}, local=True)}"
        self._begin_changing = f"BEGIN; {set_config(composed, local=True)}"
        self._begin_hot = f"BEGIN; {set_config(connector.settings, local=True)}" if pooled else None

    def hot(self) -> AbstractAsyncContextManager[Any]:
        """A plain asyncpg connection in autocommit.

        Raises:
            DatabaseUnavailable: Postgres cannot be reached, or was lost in the middle of a statement.
        """
        return self._acquired() if self._begin_hot is None else self._begun(self._begin_hot)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """As `hot`, in a transaction that is committed at the end.

        One that is left in the middle is gone, and so is its connection, which may be in the middle of a COPY.
        """
        async with self._begun(self._begin_hot or "BEGIN") as connection:
            try:
                yield connection
            except BaseException:
                with suppress(asyncpg.InterfaceError):
                    connection.terminate()
                raise

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Queries]:
        """Composed queries, in one transaction that changes nothing.

        Raises:
            DatabaseUnavailable: Postgres cannot be reached.
            QueryTooSlow: it was stopped before it had found everything.
        """
        async with self._room_for_composed(), self._begun(self._begin_reading) as connection:
            try:
                yield Queries(connection)
            except asyncpg.QueryCanceledError as error:
                raise QueryTooSlow from error

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[Queries]:
        """As `reading`, and what is changed is committed at the end, or nothing of it is where an error leaves it."""
        async with self._room_for_composed(), self._begun(self._begin_changing) as connection:
            yield Queries(connection)

    @asynccontextmanager
    async def _room_for_composed(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(COMPOSED_SECONDS):
                await self._composed.acquire()
        except TimeoutError:
            raise DatabaseUnavailable(stored_nothing=True) from None
        try:
            yield
        finally:
            self._composed.release()

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Any]:
        with translated_errors(stored_nothing=True):
            try:
                # The pool's own time limit loses a cancel that comes as a connection is handed out.
                async with asyncio.timeout(ACQUIRE_SECONDS):
                    connection = await self.pool.acquire()
            except TimeoutError:
                log.warning(
                    "no connection of the pool became free in time: a larger DATABASE_POOL_SIZE, or more processes",
                    waited_seconds=ACQUIRE_SECONDS,
                )
                raise
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
    async def _begun(self, begin: str) -> AsyncIterator[Any]:
        async with self._acquired() as connection:
            try:
                await connection.execute(begin)
                yield connection
                await connection.execute("COMMIT")
            except BaseException as error:
                try:
                    if not isinstance(error, Exception) or is_unavailable(error):
                        raise ConnectionResetError
                    await connection.execute("ROLLBACK")
                except (*CONNECTION_ERRORS, asyncpg.PostgresError):
                    with suppress(asyncpg.InterfaceError):
                        connection.terminate()
                raise


@contextmanager
def translated_errors(*, stored_nothing: bool = False) -> Iterator[None]:
    """Turns what says that Postgres cannot serve now into DatabaseUnavailable."""
    try:
        yield
    except Exception as error:
        if is_unavailable(error):
            DATABASE_FAULTS.labels(getattr(error, "sqlstate", None) or "").inc()
            raise DatabaseUnavailable(stored_nothing=stored_nothing) from error
        raise


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Opens the pool lazily: a Postgres that is down delays requests, not the start."""
    connector = Connector(settings.database_arguments, HOT_SETTINGS, pooled=settings.pooled)
    pool = asyncpg.create_pool(
        connect=connector.for_pool,
        min_size=0,
        max_size=settings.database_pool_size,
        reset=_keep,
        max_inactive_connection_lifetime=300,
    )
    # A pool without minimum connects on first use only.
    await pool
    try:
        yield Database(pool, connector, settings.database_pool_size, pooled=settings.pooled)
    finally:
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except CONNECTION_ERRORS:
            pool.terminate()
