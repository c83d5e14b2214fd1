"""Which servers this process uses: those of its environment and file, and those that are rows for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import ValidationError

from app.errors import DatabaseUnavailable
from app.fleet.servers import ServerEntry, ServerList
from app.queue.servers import ServerStore
from app.telemetry import logger

log = logger("servers")

ACTIVE, DRAINING, DISABLED = "active", "draining", "disabled"


@dataclass(frozen=True, slots=True)
class Listed:
    """A server and what is wanted of it; `id` of its row, None where it has none yet; `host_id` of a rented host."""

    entry: ServerEntry
    wanted: str = ACTIVE
    id: UUID | None = None
    host_id: UUID | None = None


class Listing:
    """Without a `store`, the servers of the process alone."""

    def __init__(self, own: ServerList, store: ServerStore | None = None) -> None:
        self._own = own
        self._store = store
        self._rows: list[Mapping[str, Any]] = []
        self._unfit: set[UUID] = set()
        self._forgot = False

    def read(self) -> list[Listed]:
        """The servers as they are known now, each address once; those that are disabled are left out."""
        rows = {row["address"]: row for row in self._rows}
        found = {}
        for entry in self._own.read():
            row = rows.get(entry.url)
            found[entry.url] = Listed(entry) if row is None else Listed(entry, row["wanted"], row["id"])
        for address, row in rows.items():
            if row["origin"] == "api" and (entry_of_row := self._entry(row)) is not None:
                found[address] = Listed(entry_of_row, row["wanted"], row["id"], row["host_id"])
        return [listed for listed in found.values() if listed.wanted != DISABLED]

    async def refresh(self) -> None:
        """Writes copies of the process's own servers, and reads the rows; without Postgres, all stays as it was."""
        if self._store is None:
            return
        try:
            if not self._forgot:
                await self._store.forget()
                self._forgot = True
            rows = await self._store.list()
            copies = [row_of(entry) | {"origin": self._own.origin_of(entry)} for entry in self._own.read()]
            known = {row["address"]: row for row in rows}
            # A write that changes nothing takes many times as long as this.
            if not all(_stands(copy, known.get(copy["address"])) for copy in copies):
                await self._store.write_copies(copies)
                rows = await self._store.list()
            self._rows = list(rows)
        except (DatabaseUnavailable, asyncpg.UndefinedTableError):
            return
        except asyncpg.UniqueViolationError:
            # Another server took the name at this moment.
            return

    def _entry(self, row: Mapping[str, Any]) -> ServerEntry | None:
        try:
            return entry_of(row)
        except ValidationError as error:
            # One of a later release, perhaps.
            if row["id"] not in self._unfit:
                self._unfit.add(row["id"])
                reason = error.errors(include_url=False, include_input=False)[0]["msg"]
                log.warning("a server cannot be used by this process", server=row["name"], reason=reason)
            return None


def _stands(copy: Mapping[str, Any], row: Mapping[str, Any] | None) -> bool:
    """Whether a row says what the copy does, and was said lately; its name may have given way to another server's."""
    if row is None or row["origin"] == "api":
        return row is not None
    same = all(row[name] == value for name, value in copy.items() if name != "name")
    return same and row["name"] in (copy["name"], copy["address"]) and not row["outdated"]


def entry_of(row: Mapping[str, Any]) -> ServerEntry:
    """Raises ValidationError where this release cannot use it."""
    fields = {name: row[name] for name in SAME}
    return ServerEntry(url=row["address"], **fields)


def row_of(entry: ServerEntry) -> dict[str, Any]:
    """The columns that the entry stands for."""
    return {
        **{name: getattr(entry, name) for name in SAME},
        "name": entry.name or entry.url,
        "address": entry.url,
        "timeouts": entry.timeouts.model_dump(exclude_none=True),
    }


SAME: Sequence[str] = (
    "name",
    "kind",
    "models",
    "concurrency",
    "hourly_price",
    "prompt_token_price",
    "completion_token_price",
    "timeouts",
    "credential",
)
