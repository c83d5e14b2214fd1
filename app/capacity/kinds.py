"""Pools with what their hosts are made of: provider, definition, deployment and tunnel."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from app.capacity.listings import Listings
from app.capacity.plan import Budget, Pool
from app.capacity.pools import PoolEntry, Pools
from app.capacity.record import Means
from app.queue.hosts import Row
from app.queue.ledger import Limit
from nvidia_triton.providers.base import Address, Provider, Query, Refused, Tunnel
from nvidia_triton.providers.deploy import check_models, deploy, weights_of
from nvidia_triton.providers.registry import open_definition, open_provider, open_settings
from nvidia_triton.providers.tunnel import Tunnel as HeldTunnel


@dataclass(frozen=True)
class Kind:
    pool: Pool
    provider: Provider
    definition: Any
    settings: Any
    bind: str
    advertised: str

    @cached_property
    def query(self) -> Query:
        query: Query = self.definition.offer_query(self.pool.max_price)
        return query

    @cached_property
    def described(self) -> Mapping[str, Any]:
        """As the table `pools` has it."""
        settings = {name: value for name, value in asdict(self.pool).items() if name not in ("name", "models")}
        return {"name": self.pool.name, "models": list(self.pool.models), "settings": settings}

    def means(self, listings: Listings) -> Means:
        return Means(
            provider=self.provider,
            listings=listings,
            definition=self.definition,
            slots=self.pool.slots,
            check=self.check_models,
            deploy=self._deploy,
            tunnel=self._tunnel,
            advertised=self.advertised,
        )

    async def check_models(self) -> None:
        """Raises Refused where the pool's models could not be deployed to any host."""
        await check_models(self.definition, self.pool.models, settings=self.settings)

    def weights(self) -> str:
        """Where those of its models are from."""
        return weights_of(self.pool.models, settings=self.settings)

    async def _deploy(self, address: Address, models: Sequence[str], progress: Callable[[Any], None]) -> None:
        await deploy(address, self.definition, models, progress, settings=self.settings)

    def _tunnel(self, address: Address) -> Tunnel:
        return HeldTunnel(address, self.definition, self.settings, bind=self.bind)


class Kinds:
    """Of all pools; hosts of a pool that is gone are ended by the provider of the same name."""

    def __init__(self, of_pools: Sequence[Kind], budget: Budget, poll_seconds: float) -> None:
        self.of_pools = of_pools
        self.budget = budget
        self.poll_seconds = poll_seconds

    @cached_property
    def pools(self) -> Sequence[Pool]:
        return [kind.pool for kind in self.of_pools]

    @cached_property
    def limits(self) -> Sequence[Limit]:
        """All budgets, as the ledger holds them."""
        budgets = {"": self.budget} | {pool.name: pool.budget for pool in self.pools}
        return [
            Limit(pool, span, most)
            for pool, budget in budgets.items()
            for span, most in asdict(budget).items()
            if most is not None
        ]

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(pool.name for pool in self.pools)

    @cached_property
    def providers(self) -> Sequence[Provider]:
        return list(dict.fromkeys(kind.provider for kind in self.of_pools))

    def named(self, pool: str) -> Kind:
        return next(kind for kind in self.of_pools if kind.pool.name == pool)

    def of_row(self, row: Row) -> Kind | None:
        """That of its pool, unless the pool has another provider now; None where no provider here has it."""
        of_provider = [kind for kind in self.of_pools if kind.provider.name == row["provider"]]
        return next((kind for kind in of_provider if kind.pool.name == row["pool"]), next(iter(of_provider), None))

    async def close(self) -> None:
        for provider in self.providers:
            await provider.close()


def open_kinds(pools: Pools, environ: Mapping[str, str], *, bind: str, advertised: str) -> Kinds:
    """
    Raises:
        Refused: a definition or a provider's settings cannot be used.
    """
    settings = open_settings(environ)
    providers: dict[str, Provider] = {}

    def kind_of(entry: PoolEntry) -> Kind:
        pool = entry.pool
        key = json.dumps([pool.provider, entry.settings], sort_keys=True)
        changes: dict[str, Any] = {"models": list(pool.models), "max_price": pool.max_price}
        if entry.query:
            changes["query"] = entry.query
        try:
            if key not in providers:
                providers[key] = open_provider(pool.provider, entry.settings, settings)
            definition = open_definition(entry.file, **changes)
        except Refused as error:
            raise Refused(f"The pool {pool.name}: {error}") from None
        if pool.interruptible and definition.bid is None:
            raise Refused(
                f"The pool {pool.name} is interruptible, and {entry.file.name} has no `bid`: write what to bid."
            )
        if not pool.interruptible and definition.bid is not None:
            raise Refused(f"{entry.file.name} has a `bid`: the pool {pool.name} needs `interruptible: true` for it.")
        return Kind(pool, providers[key], definition, settings, bind, advertised)

    return Kinds([kind_of(entry) for entry in pools.entries], pools.budget, settings.poll_seconds)
