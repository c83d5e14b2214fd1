"""The models the fleet serves, asked from Triton, and those it has ever served, kept in Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Literal, Protocol

from app.background import ended
from app.db.engine import Database
from app.engines.base import EngineError, ModelState
from app.errors import DatabaseUnavailable, ModelNotFound
from app.fleet.fleet import Fleet
from app.fleet.lanes import Server
from app.fleet.listing import ACTIVE
from app.queue.set_aside import Key, SetAside, SetAsideStore

FRESH_SECONDS = 1.0
PATIENCE_SECONDS = 0.5
DESCRIBE_TIMEOUT_SECONDS = 3.0
NAMES_SHOWN = 50
DRAINED = "Its server is drained: it finishes what it has, and gets nothing more."
NOT_SERVED = "No server of the fleet that can be reached has this model."
SLEEPS = "No host runs it now: a request has one started."
REMEMBER = """
INSERT INTO models (name, version) SELECT * FROM unnest($1::text[], $2::text[])
ON CONFLICT (name) DO UPDATE SET version = excluded.version, last_seen_at = now()
"""
# Models of pools take requests before a host has ever served them.
EVER_SERVED = """
SELECT name, max(version) AS version, bool_or(pooled) AS pooled FROM (
    SELECT name, version, false AS pooled FROM models UNION ALL SELECT unnest(models), '', true FROM pools
) known GROUP BY name ORDER BY name
"""
SET_ASIDE = "set_aside"
WaitingReason = Literal["queued", "no_server", "model_loading", "model_down", "backoff"]
_WAITING: dict[str, WaitingReason] = {"ready": "queued", "loading": "model_loading", SET_ASIDE: "model_down"}
_ORDER = {"ready": 0, "loading": 1, SET_ASIDE: 2, "unavailable": 3}


@dataclass(slots=True)
class CatalogEntry:
    """One model over all servers; `servers` are those where it is ready, `set_aside` tells of those where it is not."""

    name: str
    version: str
    state: str
    reason: str
    servers: list[str] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)

    @property
    def public_state(self) -> str:
        """ready, loading or unavailable."""
        return "unavailable" if self.state == SET_ASIDE else self.state


class ModelCatalog(Protocol):
    """What a request is checked against."""

    def knows(self, name: str) -> bool: ...
    def takes_messages(self, name: str) -> bool: ...
    async def names(self, *, fresh: bool = False) -> frozenset[str]: ...
    async def models(self) -> list[CatalogEntry]: ...
    async def require(self, name: str) -> None: ...


class Catalog:
    def __init__(self, database: Database, fleet: Fleet) -> None:
        self._database = database
        self._fleet = fleet
        self._set_aside_store = SetAsideStore(database)
        self._set_aside: dict[Key, SetAside] = {}
        self._known: set[str] = set()
        # Names read from Postgres, what other processes wrote among them; None until they are asked for.
        self._ever: frozenset[str] | None = None
        self._refreshed = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._look_again = asyncio.Event()

    async def models(self) -> list[CatalogEntry]:
        """Every model the fleet has or had, as Triton tells it now."""
        await self._refresh(PATIENCE_SECONDS)
        served = self._served()
        for name, version, pooled in await self._ever_served():
            served.setdefault(name, CatalogEntry(name, version, "unavailable", SLEEPS if pooled else NOT_SERVED))
        return sorted(served.values(), key=lambda entry: entry.name)

    async def describe(self, name: str) -> tuple[CatalogEntry, dict[str, Any]]:
        """A model with its inputs, outputs and statistics; the latter are empty while no server has it ready.

        Raises:
            ModelNotFound: no server has ever served it.
        """
        entries = {entry.name: entry for entry in await self.models()}
        if name not in entries:
            raise model_not_found(name, list(entries))
        details: dict[str, Any] = {"inputs": [], "outputs": [], "statistics": {}}
        for server in self._fleet.servers:
            if server.url not in entries[name].servers:
                continue
            try:
                with server.held() as engine:
                    described = await engine.describe(name, DESCRIBE_TIMEOUT_SECONDS)
            except EngineError:
                continue
            details["inputs"], details["outputs"] = described["inputs"], described["outputs"]
            details["statistics"][server.url] = described["statistics"]
        return entries[name], details

    async def require(self, name: str) -> None:
        """Raises ModelNotFound when no server has ever served the model."""
        if self.knows(name):
            return
        known = await self.names(fresh=True)
        if name not in known:
            raise model_not_found(name, sorted(known))

    def knows(self, name: str) -> bool:
        """Whether a server is known to have served the model; asks nobody."""
        return name in self._known or (self._ever is not None and name in self._ever)

    async def names(self, *, fresh: bool = False) -> frozenset[str]:
        """Every model the fleet has or had; `fresh` asks the fleet and Postgres before."""
        if fresh:
            await self._refresh()
            # A server that has just joined may be known by its own probe.
            await self.remember()
        if fresh or self._ever is None:
            self._ever = frozenset(name for name, _, _ in await self._ever_served())
        return self._ever | self._known

    async def remember(self) -> None:
        """Writes down what the fleet serves, so that it is known while the fleet is away."""
        served = {entry.name: entry.version for entry in self._served().values() if entry.state in ("ready", "loading")}
        fresh = {name: version for name, version in served.items() if name not in self._known}
        if not fresh:
            return
        names, versions = zip(*sorted(fresh.items()), strict=True)
        async with self._database.hot() as connection:
            await connection.execute(REMEMBER, names, versions)
        self._known.update(fresh)

    def state_of(self, name: str) -> tuple[str, str]:
        """The best state of a model on any server as last seen, and why it is set aside if it is; asks nobody."""
        found = [(state, reason) for _, state, reason in self.states_of(name)]
        state, reason = min(found, key=lambda each: _ORDER[each[0]], default=("unavailable", ""))
        return state, reason if state == SET_ASIDE else ""

    def takes_messages(self, name: str) -> bool:
        """Whether a server that has the model takes chats as they are, so that no template is needed; asks nobody."""
        return any(name in server.models and server.engine.takes_messages for server in self._fleet.servers)

    def seen(self) -> tuple[frozenset[str], frozenset[str]]:
        """The models that `knows` and `takes_messages` say yes to; asks nobody."""
        engines = [server for server in self._fleet.servers if server.engine.takes_messages]
        return (self._ever or frozenset()) | self._known, frozenset(name for each in engines for name in each.models)

    def states_of(self, name: str) -> list[tuple[Server, str, str]]:
        """The state of a model on each server that has it, and why it is not ready; asks nobody."""
        return [(server, state, reason) for server, model, state, reason in self._states() if model.name == name]

    def servers_with(self, name: str) -> list[Server]:
        """Those where the model is ready, as last seen; asks nobody."""
        return [server for server, state, _ in self.states_of(name) if state == "ready"]

    def waiting_reason(self, name: str) -> WaitingReason:
        """Why a ticket waits that is due; asks nobody."""
        return _WAITING.get(self.state_of(name)[0], "no_server")

    def set_aside_on(self, server: Server) -> list[SetAside]:
        """Models that the server calls ready, or has just been told to load again, and that do not answer."""
        return [row for (url, _), row in self._set_aside.items() if url == server.url and server.up]

    def servers_announced(self, _payload: str) -> None:
        """Servers were added, changed or removed: look now."""
        self._look_again.set()

    async def watch(self, every_seconds: float) -> None:
        """Keeps the fleet and its state as they are, for ever."""
        try:
            while True:
                if not self._begin_refresh():
                    # A server that is slow to answer must not keep others from joining or leaving.
                    await self._fleet.follow()
                await self._refresh(PATIENCE_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_seconds):
                        await self._look_again.wait()
                self._look_again.clear()
        finally:
            if self._refreshing is not None:
                await ended({self._refreshing})

    async def _refresh(self, patience: float | None = None) -> None:
        """Asks the fleet unless that was just done; waits `patience` seconds for it, else to the end.

        One server that does not answer must not hold up what the others have said.
        """
        self._begin_refresh()
        if self._refreshing is None or self._refreshing.done():
            return
        done, _ = await asyncio.wait({self._refreshing}, timeout=patience)
        for task in done:
            task.result()

    def _begin_refresh(self) -> bool:
        """Whether it begins now, by following the list; not where one is under way or was just done."""
        under_way = self._refreshing is not None and not self._refreshing.done()
        if under_way or time.monotonic() - self._refreshed < FRESH_SECONDS:
            return False
        self._refreshing = asyncio.create_task(self._ask())
        return True

    async def _ask(self) -> None:
        await self._fleet.refresh()
        with suppress(DatabaseUnavailable):
            await self.remember()
            self._set_aside = await self._set_aside_store.read()
        self._refreshed = time.monotonic()

    def _served(self) -> dict[str, CatalogEntry]:
        entries: dict[str, CatalogEntry] = {}
        for server, model, state, reason in self._states():
            entry = entries.setdefault(model.name, CatalogEntry(model.name, model.version, state, reason))
            if _ORDER[state] < _ORDER[entry.state]:
                entry.version, entry.state, entry.reason = model.version, state, reason
            if state == "ready":
                entry.servers.append(server.url)
            if state == SET_ASIDE:
                entry.set_aside.append(self._set_aside[server.url, model.name])
        return entries

    def _states(self) -> Iterator[tuple[Server, ModelState, str, str]]:
        """Each model on each server that has it, its state there and why it is not ready."""
        for server in self._fleet.servers:
            for model in server.models.values():
                row = self._set_aside.get((server.url, model.name))
                if not server.up:
                    yield server, model, "unavailable", server.reason
                elif server.wanted != ACTIVE:
                    yield server, model, "unavailable", DRAINED
                elif row is not None:
                    yield server, model, SET_ASIDE, said_of(row)
                else:
                    yield server, model, model.state, model.reason

    async def first_seen(self) -> dict[str, int]:
        """Since when each model is known, in Unix seconds."""
        async with self._database.hot() as connection:
            rows = await connection.fetch("SELECT name, first_seen_at FROM models")
        return {row["name"]: int(row["first_seen_at"].timestamp()) for row in rows}

    async def _ever_served(self) -> list[tuple[str, str, bool]]:
        """Names, versions, and whether a pool has hosts for them."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(EVER_SERVED)
        return [(row["name"], row["version"], row["pooled"]) for row in rows]


def said_of(row: SetAside) -> str:
    """Where, since when and why, and what is done about it."""
    since = f"{row.since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    note = row.note if row.note or row.dead else "It is tested until it answers."
    return f"Set aside on {row.server} since {since}: {row.reason} {note}".rstrip()


def shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{', '.join(names[:NAMES_SHOWN])}{more}"


def model_not_found(name: str, known: list[str]) -> ModelNotFound:
    if not known:
        hint = "No model has been served yet: start Triton with a model repository, then GET /models/."
    else:
        hint = f"The models there are: {shown(known)}."
    return ModelNotFound(f"No server has ever served a model named {name!r}. {hint}", models=known[:NAMES_SHOWN])
