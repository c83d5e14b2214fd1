"""What a provider says there is, asked again and again, for all who wait to hear of their hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from app.telemetry import logger
from nvidia_triton.providers.base import Provider, ProviderError, Rented

log = logger("capacity")


@dataclass(frozen=True)
class Listing:
    """One answer; `number` counts the questions, so a later one was asked later."""

    number: int
    hosts: Mapping[str, Rented] = field(default_factory=dict)

    def labelled(self, label: str) -> Rented | None:
        return next((host for host in self.hosts.values() if host.label == label), None)


class Listings:
    """Of one provider. `known`, which changes, are the ids that it is to be asked for besides."""

    def __init__(self, provider: Provider, prefix: str, known: Collection[str], every_seconds: float) -> None:
        self._provider = provider
        self._prefix = prefix
        self._known = known
        self._every = every_seconds
        self._asked = 0
        self._answered = asyncio.Condition()
        self._hurry = asyncio.Event()
        self.latest: Listing | None = None
        # Why the last question had no answer; empty where it had one.
        self.problem = ""

    async def run(self) -> None:
        """Asks for ever."""
        while True:
            self._hurry.clear()
            await self._ask()
            try:
                async with asyncio.timeout(self._every):
                    await self._hurry.wait()
            except TimeoutError:
                continue

    async def next(self, *, hurry: bool = False) -> Listing:
        """An answer to a question that is asked from now on; `hurry` asks it at once."""
        asked = self._asked
        if hurry:
            self._hurry.set()
        async with self._answered:
            await self._answered.wait_for(lambda: self.latest is not None and self.latest.number > asked)
        assert self.latest is not None
        return self.latest

    async def _ask(self) -> None:
        self._asked += 1
        number = self._asked
        try:
            hosts = await self._provider.list(self._prefix, set(self._known))
        except ProviderError as error:
            if not self.problem:
                log.warning("the provider does not tell what there is", provider=self._provider.name, reason=str(error))
            self.problem = str(error)
            return
        if self.problem:
            log.info("the provider answers again", provider=self._provider.name)
        self.problem = ""
        async with self._answered:
            self.latest = Listing(number, {host.id: host for host in hosts})
            self._answered.notify_all()
