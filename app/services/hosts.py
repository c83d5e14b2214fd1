"""Hosts as admins see them, what they ask of them, and what the controller thinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from pydantic import BaseModel, Field

from app.db.engine import Database
from app.errors import HostEnded, HostNotFound
from app.queue.audit import Action, Actor, record
from app.queue.hosts import HostStore
from app.queue.leader import LeaderStore
from app.queue.ledger import SPANS
from app.queue.pools import PoolStore

LAST = UUID(int=2**128 - 1)
# A budget that is spent so far is near its end.
NEARLY_SPENT = 0.8


class HostView(BaseModel):
    """A host, what it does and what it has cost."""

    id: UUID
    pool: str
    provider: str
    provider_id: str | None = Field(description="what the provider calls it; null until that is known")
    label: str
    machine: str | None
    gpu: str | None
    spot: bool = Field(description="the provider may take it back at any moment")
    hourly_price: float = Field(description="dollars")
    storage_price: float = Field(description="dollars an hour while it is stopped")
    cost: float = Field(description="dollars so far, by the ledger")
    models: list[str]
    revision: str | None = Field(
        description="where the models' weights are from: `owner/name` of a hub, with its revision where a source.json "
        "names one"
    )
    state: Literal[
        "wanted",
        "creating",
        "booting",
        "deploying",
        "loading",
        "ready",
        "draining",
        "destroying",
        "gone",
        "failed",
    ]
    reason: str = Field(description="why it is in this state")
    progress: str = Field(description="what it does within it")
    failure: str | None = Field(description="what went wrong with it")
    locked: bool = Field(description="exempt from scaling down")
    asked: Literal["drain", "destroy"] | None = Field(description="what an admin asked for")
    address: str | None = Field(description="its server's")
    generations: int
    completion_tokens: int
    busy_seconds: float = Field(description="in which it had work")
    last_request_at: datetime | None
    created_at: datetime
    state_since: datetime
    ready_at: datetime | None
    ended_at: datetime | None


class HostEvent(BaseModel):
    at: datetime
    state: str
    reason: str
    progress: str


class HostDetail(HostView):
    events: list[HostEvent] = Field(description="its life, oldest first")


class LeaderView(BaseModel):
    holder: str
    leads: bool = Field(description="whether its lease is good")
    until: datetime


class PoolView(BaseModel):
    name: str
    models: list[str]
    settings: dict[str, Any] = Field(description="its limits and budgets")
    plan: dict[str, Any] = Field(description="demand, actions and why tickets wait, as last decided")
    hosts: int = Field(description="that have not ended")
    spent: dict[str, float] = Field(description="dollars of the running hour, day and month (UTC), in all, and an hour")
    seen_at: datetime = Field(description="when the controller last decided")

    @property
    def budget(self) -> Mapping[str, float | None]:
        """Dollars by hour, day, month (UTC) and total; None is no limit."""
        return self.settings.get("budget") or {}


class CapacityView(BaseModel):
    leader: LeaderView | None = Field(description="the controller that decides; null where none ever ran")
    budget: dict[str, float | None] = Field(
        description="dollars over all pools in an hour, a day, a month (UTC) and in total; null is no limit"
    )
    spent: dict[str, float] = Field(description="as that of a pool, of all there are and were")
    pools: list[PoolView]


class BudgetUse(NamedTuple):
    """What is spent of one limit of a budget, in dollars; `window` is hour, day, month (UTC) or total."""

    window: str
    spent: float
    limit: float

    @property
    def near(self) -> bool:
        """Whether little of it is left, or nothing."""
        return self.spent >= self.limit * NEARLY_SPENT


def budget_uses(of: PoolView | CapacityView) -> list[BudgetUse]:
    """Of each limit that a pool has, or all pools together."""
    return [BudgetUse(window, of.spent.get(window, 0.0), limit) for window in SPANS if (limit := of.budget.get(window))]


class Hosts:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._store = HostStore(database)

    async def list(self, limit: int, after: UUID | None = None) -> Sequence[HostView]:
        """Hosts that live or have ended, newest first."""
        return [_view(row) for row in await self._store.recent(limit, after or LAST)]

    async def lives(self, ids: Sequence[UUID]) -> dict[UUID, Sequence[HostEvent]]:
        """The events of hosts, oldest first."""
        lives: dict[UUID, list[HostEvent]] = {id_: [] for id_ in ids}
        for event in await self._store.events_of(ids):
            lives[event["host_id"]].append(HostEvent(**{name: event[name] for name in HostEvent.model_fields}))
        return dict(lives)

    async def get(self, id_: UUID) -> HostDetail:
        """Raises HostNotFound."""
        row = await self._row(id_)
        events = [HostEvent(**dict(event)) for event in await self._store.events(id_)]
        return HostDetail(**_view(row).model_dump(), events=events)

    async def named(self, name: str) -> UUID:
        """The id of the host with this label, provider's id or id; raises HostNotFound."""
        for row in await self._store.recent(1000, LAST):
            if name in (str(row["id"]), row["label"], row["provider_id"]):
                id_: UUID = row["id"]
                return id_
        raise HostNotFound(f"No host is called {name!r}. `make hosts` and GET /hosts/ list those there are.")

    async def drain(self, id_: UUID, actor: Actor) -> HostDetail:
        """It gets nothing more, finishes what it has, and is destroyed.

        Raises:
            HostNotFound: there is none with this id.
            HostEnded: it is gone or being destroyed.
        """
        return await self._ask(id_, "drain", Action.HOST_DRAINED, actor)

    async def destroy(self, id_: UUID, actor: Actor) -> HostDetail:
        """Ends it without waiting for what runs there, which is run again elsewhere; raises as `drain`."""
        return await self._ask(id_, "destroy", Action.HOST_DESTROYED, actor)

    async def lock(self, id_: UUID, locked: bool, actor: Actor) -> HostDetail:
        """A locked host is not ended for want of work; raises as `drain`."""
        await self._row(id_)
        async with self._database.transaction() as connection:
            if not await self._store.lock(connection, id_, locked):
                raise _ended(id_)
            action = Action.HOST_LOCKED if locked else Action.HOST_UNLOCKED
            await record(connection, action, actor, None, str(id_))
        return await self.get(id_)

    async def capacity(self) -> CapacityView:
        leader = await LeaderStore(self._database).read()
        spent = await self._store.spent()
        live = [row["pool"] for row in await self._store.live()]
        pools = [
            PoolView(
                **{name: pool[name] for name in ("name", "models", "settings", "plan", "seen_at")},
                hosts=live.count(pool["name"]),
                spent={name: value for name, value in dict(spent.get(pool["name"], {})).items() if name != "pool"},
            )
            for pool in await PoolStore(self._database).list()
        ]
        return CapacityView(
            leader=None if leader is None else LeaderView(**{name: leader[name] for name in LeaderView.model_fields}),
            budget={} if leader is None else leader["budget"],
            spent={name: sum(row[name] for row in spent.values()) for name in (*SPANS, "rate")},
            pools=pools,
        )

    async def _ask(self, id_: UUID, what: str, action: Action, actor: Actor) -> HostDetail:
        await self._row(id_)
        async with self._database.transaction() as connection:
            if not await self._store.ask(connection, id_, what):
                raise _ended(id_)
            await record(connection, action, actor, None, str(id_))
        return await self.get(id_)

    async def _row(self, id_: UUID) -> Mapping[str, Any]:
        row = await self._store.find(id_)
        if row is None:
            raise HostNotFound(f"No host has the id {id_}. `make hosts` and GET /hosts/ list those there are.")
        return row


def _view(row: Mapping[str, Any]) -> HostView:
    return HostView(**{name: row[name] for name in HostView.model_fields})


def _ended(id_: UUID) -> HostEnded:
    return HostEnded(f"Host {id_} has ended, or is being destroyed: GET /hosts/{id_} says why.")
