"""How every connection to Postgres is made: pool, listener and migrations share it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import asyncpg
from pydantic_core import from_json, to_json

from app.database_url import ConnectArguments
from app.telemetry import logger

log = logger("database")

COMMAND_SECONDS = 30.0
CACHED_STATEMENTS = 100
# Plans are made anew this often, so that they follow the tables' growth; and by Postgres whenever it has looked at how
# large a table is.
PLAN_SECONDS = 300
PROBE = "tickets_probe"
PROBE_SETTING = "tickets.probe"
PROBE_FAILS = "22012"
# A simple query, which needs no prepared statement but returns nothing: another session's answer divides by zero.
ASK_PROBE = f"SELECT 1 / (coalesce(current_setting('{PROBE_SETTING}', true), '') = '%s')::int"


def set_config(settings: Mapping[str, str], *, local: bool) -> str:
    """One statement that sets run-time parameters, for the transaction only where `local`."""
    calls = ", ".join(
        f"set_config({_literal(name)}, {_literal(value)}, {'true' if local else 'false'})"
        for name, value in settings.items()
    )
    return f"SELECT {calls}"


def _literal(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace("'", "''")
    return f" E'{quoted}'" if "\\" in text else f"'{quoted}'"


async def set_codecs(connection: Any) -> None:
    """JSONB travels as Python values in both directions."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + to_json(value),
        decoder=lambda data: from_json(data[1:]),
        format="binary",
    )


class Connector:
    """Opens connections to one target, each with the run-time parameters `settings`.

    Through a pooler in transaction mode (`pooled`) a session keeps nothing: there the parameters are the business of
    each transaction, and prepared statements are used only where the pooler carries them from one server connection
    to another, as PgBouncer does since 1.21.
    """

    def __init__(
        self, arguments: ConnectArguments, settings: Mapping[str, str] | None = None, *, pooled: bool = False
    ) -> None:
        self._arguments = arguments
        self._pooled = pooled
        self.settings = {**arguments.settings, **(settings or {})}
        self._refused = False
        self._probing = asyncio.Lock()
        self._prepared: bool | None = None if pooled else True

    async def open(self, *, command_timeout: float = COMMAND_SECONDS, **options: Any) -> Any:
        """A new connection.

        Raises:
            OSError, asyncio.TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: there is none to be had.
        """
        if self._pooled:
            return await self._open_pooled(command_timeout, options)
        connection = await self._open_with_settings(command_timeout, options)
        if connection is not None:
            return connection
        connection = await self._connect(command_timeout, CACHED_STATEMENTS, options)
        try:
            await connection.execute(set_config(self.settings, local=False))
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _open_with_settings(self, command_timeout: float, options: dict[str, Any]) -> Any:
        """None where a pooler refuses them at the start of a session: in session mode they can be set afterwards."""
        if self._refused:
            return None
        try:
            return await self._connect(command_timeout, CACHED_STATEMENTS, options, server_settings=self.settings)
        except asyncpg.ProtocolViolationError as error:
            if "startup parameter" not in str(error):
                raise
            self._refused = True
            return None

    async def keeps_sessions(self) -> bool:
        """False where a pooler gives one session's statements to several server connections, in transaction mode.

        Asked where start-up parameters were refused, which only poolers do.
        """
        direct = await self._open_with_settings(COMMAND_SECONDS, {})
        if direct is not None:
            direct.terminate()
            return True
        # Without the settings: those of a session would stay with a server connection that others share.
        first = await self._connect(COMMAND_SECONDS, 0, {})
        try:
            second, mark = await self._connect(COMMAND_SECONDS, 0, {}), uuid4().hex
            try:
                await first.execute(set_config({PROBE_SETTING: mark}, local=False))
                # It takes the server connection that was free last.
                await second.execute("BEGIN; SELECT 1")
                await first.execute(ASK_PROBE % mark, timeout=self._arguments.timeout)
            finally:
                second.terminate()
        except asyncpg.PostgresError as error:
            if error.sqlstate != PROBE_FAILS:
                raise
            return False
        finally:
            first.terminate()
        return True

    async def for_pool(self, *_dsn: Any, **options: Any) -> Any:
        """As `open`, for the pool's `connect`: with what every statement needs."""
        connection = await self.open(**options)
        try:
            if self._pooled:
                async with connection.transaction():
                    await set_codecs(connection)
            else:
                await set_codecs(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _open_pooled(self, command_timeout: float, options: dict[str, Any]) -> Any:
        async with self._probing:
            if self._prepared is None:
                connection = await self._connect(command_timeout, 0, options)
                try:
                    self._prepared = await _carries_prepared_statements(connection)
                finally:
                    connection.terminate()
                log.info("connected through a pooler", prepared_statements=self._prepared)
        return await self._connect(command_timeout, CACHED_STATEMENTS if self._prepared else 0, options)

    async def _connect(self, command_timeout: float, cached: int, options: dict[str, Any], **more: Any) -> Any:
        return await asyncpg.connect(
            self._arguments.dsn,
            ssl=self._arguments.ssl,
            timeout=self._arguments.timeout,
            command_timeout=command_timeout,
            statement_cache_size=cached,
            max_cached_statement_lifetime=PLAN_SECONDS,
            **options,
            **more,
        )


async def _carries_prepared_statements(connection: Any) -> bool:
    """Whether a pooler gives prepared statements names of its own, by which it knows them on every connection."""
    async with connection.transaction():
        # Held, as asyncpg closes a statement that nobody holds.
        probe = await connection.prepare("SELECT 1", name=PROBE)
        known = await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name = $1", PROBE)
        if known:
            await connection.execute(f"DEALLOCATE {probe.get_name()}")
    return not known
