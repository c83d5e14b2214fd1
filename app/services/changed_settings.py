"""Settings as admins see them, and as they change those that may change while everything runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.config import CHANGEABLE, Settings
from app.db.engine import Database
from app.errors import DatabaseUnavailable, SettingFixed, SettingNotFound, invalid
from app.queue.audit import Action, Actor, record
from app.queue.changed_settings import ChangedSettingStore
from app.telemetry import logger

log = logger("settings")

# Without a word from Postgres they are looked at this often.
LOOK_SECONDS = 5.0
# Addresses that may hold a password, or are one.
SECRETS = frozenset({"database_url", "database_listen_url", "capacity_webhook_url", "otel_exporter_otlp_endpoint"})
LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")

Row = Mapping[str, Any]


class SettingView(BaseModel):
    """A setting as the API process that answers has it."""

    name: str = Field(description="that of the environment variable")
    value: str = Field(description="as a variable would have it; `set` or `not set` where it may hold a password")
    default: str
    environment: str = Field(description="what the environment of this process says; `value` where it is not changed")
    meaning: str = Field(description="Markdown without links")
    changeable: bool = Field(description="whether it can change while everything runs")
    changed_at: datetime | None = Field(description="when an admin changed it; null where the environment counts")
    changed_by: str | None = Field(description="who did: the name of a key, or how it was done without one")

    @property
    def differs(self) -> bool:
        return self.value != self.default


class ChangedSettings:
    """Keeps the settings of this process as the table has them; `applied` is called whenever they have changed."""

    def __init__(self, database: Database, settings: Settings, applied: Callable[[Settings], None]) -> None:
        self._database = database
        self._store = ChangedSettingStore(database)
        self._settings = settings
        self._applied = applied
        self._look_again = asyncio.Event()
        self._refused: set[tuple[str, str]] = set()

    def announced(self, _payload: str) -> None:
        """Somebody changed some."""
        self._look_again.set()

    async def run(self) -> None:
        """Follows the table for ever."""
        while True:
            with suppress(DatabaseUnavailable):
                await self.look()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._look_again.wait()
            self._look_again.clear()

    async def look(self) -> Sequence[Row]:
        """Takes what the table says now, and returns it."""
        rows = await self._store.list()
        changes = {}
        for row in rows:
            name, text = row["name"], row["value"]
            try:
                if name in CHANGEABLE:
                    changes[name] = parsed(name, text)
            except ValueError as error:
                # Another version of the service wrote it.
                if (name, text) not in self._refused:
                    log.warning("a changed setting is not taken", name=name.upper(), value=text, reason=error)
                self._refused.add((name, text))
        before = {name: getattr(self._settings, name) for name in CHANGEABLE}
        self._settings.change(changes)
        now = {name: getattr(self._settings, name) for name in CHANGEABLE}
        if now != before:
            fields = {name.upper(): now[name] for name in sorted(now) if now[name] != before[name]}
            log.info("settings changed", **fields)
            self._applied(self._settings)
        return rows

    async def list(self) -> list[SettingView]:
        """All of them, in the order of the README."""
        changed = {row["name"]: row for row in await self.look()}
        return [viewed(self._settings, name, changed.get(name)) for name in Settings.model_fields]

    async def change(self, name: str, text: str, actor: Actor) -> SettingView:
        """Has all processes take a value within seconds, and after every start, whatever their environment says.

        Raises:
            SettingNotFound: there is none of this name.
            SettingFixed: it changes with a start only.
            InvalidRequest: it cannot have this value.
        """
        field = _changeable(name)
        try:
            value = parsed(field, text)
        except ValueError as error:
            raise invalid("value", str(error)) from None
        before = shown(getattr(self._settings, field))
        async with self._database.transaction() as connection:
            await self._store.write(connection, field, shown(value), actor)
            details = {"from": before, "to": shown(value)}
            await record(connection, Action.SETTING_CHANGED, actor, None, name.upper(), details=details)
        return await self._seen(field)

    async def reset(self, name: str, actor: Actor) -> SettingView:
        """Has the environment's value count again.

        Raises:
            SettingNotFound, SettingFixed: as `change`.
        """
        field = _changeable(name)
        before = shown(getattr(self._settings, field))
        async with self._database.transaction() as connection:
            if await self._store.remove(connection, field):
                details = {"from": before}
                await record(connection, Action.SETTING_RESET, actor, None, name.upper(), details=details)
        return await self._seen(field)

    async def _seen(self, field: str) -> SettingView:
        changed = {row["name"]: row for row in await self.look()}
        return viewed(self._settings, field, changed.get(field))


def viewed(settings: Settings, name: str, row: Row | None = None) -> SettingView:
    """`row` is what the table says of it."""
    field = Settings.model_fields[name]
    value, default = getattr(settings, name), field.default
    said, usual, environment = shown(value), shown(default), shown(settings.of_environment(name))
    if name in SECRETS:
        said = environment = "not set" if value == default else "set"
        usual = "not set"
    return SettingView(
        name=name.upper(),
        value=said,
        default=usual,
        environment=environment,
        meaning=LINK.sub(r"\1", field.description or ""),
        changeable=name in CHANGEABLE,
        changed_at=None if row is None else row["changed_at"],
        changed_by=None if row is None else row["actor_key_name"] or row["actor"],
    )


def parsed(name: str, text: str) -> Any:
    """The value of a setting from what an environment variable would say.

    Raises:
        ValueError: it cannot have that value; the text says why.
    """
    field = Settings.model_fields[name]
    optional = type(None) in get_args(field.annotation)
    if not text.strip():
        if optional:
            return None
        raise ValueError(f"{name.upper()} cannot be empty")
    adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation(), config=ConfigDict(allow_inf_nan=False))
    try:
        return adapter.validate_python(text.strip())
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(problem["msg"].removeprefix("Value error, ")) from None


def shown(value: Any) -> str:
    """As an environment variable would have it."""
    if value is None or value == () or value == "":
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _changeable(name: str) -> str:
    """The field of a variable's name."""
    field = name.lower()
    if field not in Settings.model_fields:
        raise SettingNotFound(f"There is no setting {name!r}. GET /settings/ lists those there are.")
    if field not in CHANGEABLE:
        names = ", ".join(each.upper() for each in CHANGEABLE)
        raise SettingFixed(
            f"{name.upper()} is read when a process starts: change it in the environment, and start the processes "
            f"again. While they run, these can change: {names}."
        )
    return field
