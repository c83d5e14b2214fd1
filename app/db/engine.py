"""The one pool of a process: fixed statements in autocommit, composed ones in a transaction with plans of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from types import TracebackType
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
# A connection goes from one statement to the next for so long, as each way through the pool costs more than most
# statements. Then it goes back, and the pool closes what is old or was idle.
KEPT_SECONDS = 30.0
# So many connections are kept where statements are planned ahead: those that one ticket needs at once, and what runs
# beside it. Half of the pool at most.
READY_CONNECTIONS = 3
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
        # Free ones, the last used last, with the moment at which each came from the pool; and who waits for the pool.
        self._kept: list[tuple[Any, float]] = []
        self._waiting = 0
        self._ready = min(READY_CONNECTIONS, size // 2)

    def hot(self) -> AbstractAsyncContextManager[Any]:
        """A plain asyncpg connection in autocommit.

        Raises:
            DatabaseUnavailable: Postgres cannot be reached, or was lost in the middle of a statement.
        """
        return _Acquired(self, self.take) if self._begin_hot is None else self._begun(self._begin_hot)

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

    async def take(self) -> tuple[Any, float]:
        """A connection, and when it came from the pool; raises DatabaseUnavailable."""
        while self._kept:
            connection, since = self._kept.pop()
            if _usable(connection):
                return connection, since
            await self.pool.release(connection)
        return await self._from_pool()

    async def _longest_kept(self) -> tuple[Any, float]:
        """As `take`, the connection that was used longest ago; another one while there are few."""
        if len(self._kept) < self._ready:
            return await self._from_pool()
        connection, _ = self._kept.pop(0)
        return connection, time.monotonic()

    async def _from_pool(self) -> tuple[Any, float]:
        self._waiting += 1
        try:
            with translated_errors(stored_nothing=True):
                # The pool's own time limit loses a cancel that comes as a connection is handed out.
                async with asyncio.timeout(ACQUIRE_SECONDS):
                    return await self.pool.acquire(), time.monotonic()
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                log.warning(
                    "no connection of the pool became free in time: a larger DATABASE_POOL_SIZE, or more processes",
                    waited_seconds=ACQUIRE_SECONDS,
                )
            raise
        finally:
            self._waiting -= 1

    async def give_back(self, connection: Any, since: float) -> None:
        """After a block that ended without an error."""
        oldest = time.monotonic() - KEPT_SECONDS
        if self._waiting or since < oldest or not _usable(connection):
            await self.pool.release(connection)
        else:
            self._kept.append((connection, since))
        while self._kept and self._kept[0][1] < oldest:
            await self.pool.release(self._kept.pop(0)[0])

    async def keep_ready(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Has connections at hand where these statements are planned, for ever; each is run with its arguments.

        To plan one takes many times as long as to run it, and whoever came first would wait for it. Behind a pooler,
        whose server connections are anybody's, this does nothing.
        """
        while self._begin_hot is None:
            with suppress(DatabaseUnavailable):
                for _ in range(self._ready):
                    async with _Acquired(self, self._longest_kept) as connection:
                        for statement, arguments in statements:
                            await connection.fetch(statement, *arguments)
            await asyncio.sleep(KEPT_SECONDS / 2)

    async def close(self) -> None:
        """Waits for the connections in use."""
        self._waiting += 1
        while self._kept:
            await self.pool.release(self._kept.pop()[0])
        await self.pool.close()

    @asynccontextmanager
    async def _begun(self, begin: str) -> AsyncIterator[Any]:
        async with _Acquired(self, self.take) as connection:
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


class _Acquired:
    """A block with a connection; as an object, which costs less than a generator."""

    __slots__ = ("_connection", "_database", "_since", "_take")

    def __init__(self, database: Database, take: Callable[[], Awaitable[tuple[Any, float]]]) -> None:
        self._database = database
        self._take = take

    async def __aenter__(self) -> Any:
        self._connection, self._since = await self._take()
        return self._connection

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._database.give_back(self._connection, self._since)
            return
        try:
            with translated_errors():
                raise error
        except DatabaseUnavailable:
            # Its protocol may be left in the middle of a message; one that noticed has left the pool by itself.
            with suppress(asyncpg.InterfaceError):
                self._connection.terminate()
            raise
        finally:
            await self._database.pool.release(self._connection)


def _usable(connection: Any) -> bool:
    try:
        return not (connection.is_closed() or connection.is_in_transaction())
    except asyncpg.InterfaceError:
        # Lost meanwhile, and the pool's again.
        return False


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
    database = Database(pool, connector, settings.database_pool_size, pooled=settings.pooled)
    try:
        yield database
    finally:
        try:
            async with asyncio.timeout(5):
                await database.close()
        except CONNECTION_ERRORS:
            pool.terminate()
