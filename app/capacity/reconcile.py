"""Carries out what the policy decides: reserves, then creates; and sees to it that no host is lost or left over."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from uuid import UUID

from app.background import ended, restarted
from app.capacity.alerts import Alerts
from app.capacity.budget import ENDING
from app.capacity.kinds import Kind, Kinds
from app.capacity.listings import Listings
from app.capacity.machines import refused_for
from app.capacity.observe import Observer, Situation
from app.capacity.plan import Action, Destroy, Drain, Market, Plan, Rent, State, Undrain
from app.capacity.policy import decide
from app.capacity.serving import Serving
from app.capacity.walk import Walk
from app.db.engine import Database
from app.errors import DatabaseUnavailable
from app.queue.hosts import HostStore, LeadersHosts, Row
from app.queue.leader import Leadership, NotLeading
from app.queue.ledger import Overspent
from app.queue.pools import LeadersPools
from app.telemetry import logger
from nvidia_triton.providers.base import NoOffer, Provider, ProviderError, Rented

log = logger("capacity")

PREFIX = "triton-tickets-"
# An answer about offers is as good as new for so long.
MARKET_SECONDS = 30.0
OFFERS_SECONDS = 60.0


class Reconciler:
    """Works while this process leads."""

    def __init__(
        self,
        database: Database,
        leadership: Leadership,
        kinds: Kinds,
        every_seconds: float,
        alerts_url: str | None = None,
    ) -> None:
        self._kinds = kinds
        self._every = every_seconds
        self._prefix = f"{PREFIX}{leadership.service}-"
        self._store = HostStore(database)
        self._writes = LeadersHosts(database, leadership.token)
        self._pools = LeadersPools(database, leadership.token)
        self._serving = Serving(database, leadership.token)
        self._observer = Observer(database, self._writes)
        self._alerts = Alerts(database, leadership.token, alerts_url)
        self._walks: dict[UUID, tuple[Walk, asyncio.Task[None]]] = {}
        self._markets: dict[str, tuple[float, Market]] = {}
        # By pool: refusals in a row.
        self._refusals: Counter[str] = Counter()
        self._listings: dict[Provider, Listings] = {}
        self._known: dict[Provider, set[str]] = {}
        # Hosts that nobody here can look after.
        self._strange: set[UUID] = set()

    async def run(self) -> None:
        """Decides again and again; raises NotLeading once the lease is somebody else's."""
        async with asyncio.TaskGroup() as group:
            for provider in self._kinds.providers:
                known = self._known[provider] = set[str]()
                listings = Listings(provider, self._prefix, known, self._kinds.poll_seconds)
                self._listings[provider] = listings
                group.create_task(listings.run())
                group.create_task(self._take_in_strays(provider, listings))
            try:
                while True:
                    try:
                        await self._tick()
                    except DatabaseUnavailable:
                        log.warning("Postgres is away: hosts stay as they are")
                    await asyncio.sleep(self._every)
            finally:
                await ended(task for _, task in self._walks.values())

    async def _tick(self) -> None:
        await self._pools.put([kind.described for kind in self._kinds.of_pools], asdict(self._kinds.budget))
        in_doubt = frozenset(id_ for id_, (walk, _) in self._walks.items() if walk.in_doubt)
        situation = await self._observer.look(self._kinds.pools, in_doubt)
        await self._alerts.tell(situation.now, self._kinds.pools, self._kinds.budget, situation.spent, situation.hosts)
        self._follow(situation.rows)
        await self._charge_what_is_asked(situation.rows)
        plan = self._decide(situation)
        if plan.ask:
            await self._ask(plan.ask)
            plan = self._decide(situation)
        for action in plan.actions:
            await self._carry_out(action)
        await self._pools.planned(
            {kind.pool.name: _planned(kind, plan, situation, self._market(kind)) for kind in self._kinds.of_pools}
        )

    def _decide(self, situation: Situation) -> Plan:
        now = time.monotonic()
        markets = {name: market for name, (until, market) in self._markets.items() if until > now}
        for kind in self._kinds.of_pools:
            if problem := self._listings[kind.provider].problem:
                # What there is is not known: nothing is added to it.
                markets[kind.pool.name] = Market(error=problem)
        return decide(
            situation.now,
            self._kinds.pools,
            situation.demand,
            situation.hosts,
            markets,
            situation.spent,
            situation.failures,
            situation.measured,
            self._kinds.budget,
        )

    def _market(self, kind: Kind) -> Market | None:
        return self._markets.get(kind.pool.name, (0.0, None))[1]

    async def _ask(self, pools: Sequence[str]) -> None:
        for kind in self._kinds.of_pools:
            if kind.pool.name in pools:
                self._markets[kind.pool.name] = (time.monotonic() + MARKET_SECONDS, await _market_of(kind))

    def _follow(self, rows: Sequence[Row]) -> None:
        """Every host that lives has a task that goes on with it; what admins ask for is passed on."""
        for row in rows:
            if (kind := self._kinds.of_row(row)) is None:
                if row["id"] not in self._strange:
                    self._strange.add(row["id"])
                    log.error(
                        "a host costs money, and no pool has its provider", host=row["label"], provider=row["provider"]
                    )
                continue
            if row["id"] not in self._walks:
                self._start(row, kind)
            walk = self._walks[row["id"]][0]
            if row["asked"] == "destroy":
                walk.order("destroying", "An administrator asked for its end.")
            elif row["asked"] == "drain" and row["state"] != "draining":
                walk.order("draining", "An administrator asked to drain it.")
            elif row["pool"] != kind.pool.name and row["state"] != "draining":
                walk.order("draining", f"There is no pool {row['pool']} with hosts of {row['provider']} any more.")
        for provider, known in self._known.items():
            known.clear()
            for row in rows:
                kind = self._kinds.of_row(row)
                if row["provider_id"] is not None and kind is not None and kind.provider is provider:
                    known.add(row["provider_id"])
        for id_, (walk, task) in list(self._walks.items()):
            if task.done():
                del self._walks[id_]
                task.result()
                self._learn_of_refusal(walk)

    async def _charge_what_is_asked(self, rows: Sequence[Row]) -> None:
        """A provider may come to ask more for a host than it offered it for."""
        for row in rows:
            kind = self._kinds.of_row(row)
            listing = None if kind is None else self._listings[kind.provider].latest
            rented = None if listing is None else listing.hosts.get(row["provider_id"])
            if rented is not None and rented.price > row["hourly_price"]:
                log.warning(
                    "a host costs more than it was offered for",
                    host=row["label"],
                    offered=row["hourly_price"],
                    price=rented.price,
                )
                await self._writes.charge(row["id"], rented.price)

    def _learn_of_refusal(self, walk: Walk) -> None:
        pool = walk.row["pool"]
        if not walk.refusal:
            del self._refusals[pool]
            return
        self._refusals[pool] += 1
        until = time.monotonic() + refused_for(self._refusals[pool])
        self._markets[pool] = (until, Market(refusal=walk.refusal))

    def _start(self, row: Row, kind: Kind, rent: Rent | None = None) -> None:
        walk = Walk(
            row,
            kind.means(self._listings[kind.provider]),
            self._store,
            self._writes,
            self._serving,
            None if rent is None else rent.offer,
        )
        self._walks[row["id"]] = (walk, asyncio.create_task(_walked(walk), name=row["label"]))

    async def _carry_out(self, action: Action) -> None:
        match action:
            case Rent():
                await self._rent(action)
            case Drain():
                self._order(action.host, State.DRAINING, action.reason)
            case Undrain():
                self._order(action.host, State.READY, action.reason)
            case Destroy():
                if action.failed:
                    await self._writes.fail(UUID(action.host), action.reason)
                self._order(action.host, State.DESTROYING, action.reason)

    def _order(self, host: str, state: State, reason: str) -> None:
        if (found := self._walks.get(UUID(host))) is not None:
            found[0].order(state.value, reason)

    async def _rent(self, rent: Rent) -> None:
        kind = self._kinds.named(rent.pool)
        offer = rent.offer
        # The next one is chosen from a market without this one.
        self._markets.pop(rent.pool, None)
        try:
            row = await self._reserve(kind, rent)
        except Overspent as error:
            log.error("no host was made: the plan was more than a budget has", pool=rent.pool, reason=str(error))
            return
        log.info("host", host=row["label"], state="wanted", reason=rent.reason, price=offer.price, gpu=offer.gpu)
        self._start(row, kind, rent)

    async def _reserve(self, kind: Kind, rent: Rent) -> Row:
        offer = rent.offer
        return await self._writes.reserve(
            pool=rent.pool,
            provider=kind.pool.provider,
            label=f"{self._prefix}{secrets.token_hex(6)}",
            offer=offer.id,
            machine=offer.machine,
            gpu=offer.gpu,
            hourly_price=offer.price,
            storage_price=offer.storage_price,
            spot=offer.interruptible,
            models=kind.pool.models,
            revision=await asyncio.to_thread(kind.weights) or None,
            reason=rent.reason,
            limits=[limit for limit in self._kinds.limits if limit.pool in ("", rent.pool)],
            keep_seconds=ENDING,
        )

    async def _take_in_strays(self, provider: Provider, listings: Listings) -> None:
        """Ends hosts with our label that no row lives for: of a create answered late or twice, or of a lost row."""
        while True:
            listing = await listings.next()
            with suppress(DatabaseUnavailable):
                rows = await self._store.live()
                ours = {row["provider_id"] for row in rows}
                sought = {row["label"] for row in rows if row["provider_id"] is None}
                for rented in listing.hosts.values():
                    if rented.id not in ours and rented.label not in sought:
                        await self._adopt(provider, rented)

    async def _adopt(self, provider: Provider, rented: Rented) -> None:
        before = (await self._store.by_labels([rented.label])).get(rented.label)
        pool = "" if before is None else before["pool"]
        log.warning("a host without a row is ended", label=rented.label, id=rented.id, provider=provider.name)
        row = await self._writes.reserve(
            pool=pool,
            provider=provider.name,
            label=f"{rented.label}+{secrets.token_hex(3)}",
            offer="",
            machine=rented.machine,
            gpu=rented.gpu,
            hourly_price=rented.price,
            storage_price=0.0,
            spot=False,
            models=(),
            revision=None,
            reason=f"It exists and nobody wants it: {rented.id} with the label {rented.label}.",
            since=None if before is None else _uncharged_since(before, rented),
        )
        await self._writes.move(row["id"], "destroying", row["reason"], provider_id=rented.id)


def _uncharged_since(row: Row, rented: Rented) -> datetime:
    """When a host began to cost beside the row of its label: it was taken for gone, or its create made two."""
    since: datetime = row["created_at"]
    if row["ended_at"] is not None and row["provider_id"] in (None, rented.id):
        since = row["ended_at"]
    return since


async def _walked(walk: Walk) -> None:
    """A defect of one host's life stops no other one; whoever leads next goes on with it."""
    with suppress(NotLeading):
        await restarted("host", walk.run, passed_on=(NotLeading,))


async def _market_of(kind: Kind) -> Market:
    try:
        async with asyncio.timeout(OFFERS_SECONDS):
            return Market(offers=tuple(await kind.provider.offers(kind.query)))
    except NoOffer as error:
        return Market(removed=error.removed)
    except ProviderError as error:
        return Market(error=str(error))
    except TimeoutError:
        return Market(error="The provider does not answer.")


def _planned(kind: Kind, plan: Plan, situation: Situation, market: Market | None) -> Mapping[str, object]:
    """What GET /capacity/ shows of a pool, and what its tickets say."""
    ids = {host.id for host in situation.hosts if host.pool == kind.pool.name}
    own = [
        each for each in plan.actions if (each.pool == kind.pool.name if isinstance(each, Rent) else each.host in ids)
    ]
    return {
        "at": situation.now,
        "actions": [{"action": type(each).__name__.lower(), "reason": each.reason} for each in own],
        "waiting": [asdict(each) for each in plan.waiting if each.model in kind.pool.models],
        "demand": [asdict(situation.demand[model]) for model in kind.pool.models if model in situation.demand],
        "spent": asdict(situation.spent.pools[kind.pool.name]) if kind.pool.name in situation.spent.pools else {},
        "market": None
        if market is None
        else {
            "offers": len(market.offers),
            "removed": [asdict(each) for each in market.removed],
            "error": market.error,
        },
    }
