"""All state of the simulated service. Everything here runs in the one event loop of the service."""

import asyncio
import copy
import itertools
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.vast.fake.contract import Contract
from tests.vast.fake.faults import Faults, Machine
from tests.vast.fake.market import OFFERS, Row, priced
from tests.vast.fake.provision import Engine

API_KEY = f"simulated-key-{secrets.token_hex(6)}"
FIRST_CONTRACT = 7835610


@dataclass(frozen=True)
class Request:
    """What somebody asked; `body` is the parsed JSON, or the text that was none."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    authorized: bool
    at: float = field(default_factory=time.time)


class NoSuchAsk(LookupError):
    """Nobody offers this any more."""


class World:
    def __init__(self, directory: Path, engine: Engine, boot_seconds: float) -> None:
        self.directory = directory
        self.engine = engine
        self.boot_seconds = boot_seconds
        self.faults = Faults()
        self.machine = Machine()
        self.requests: list[Request] = []
        self.offers: list[Row] = []
        self.account_keys: dict[int, str] = {}
        self.contracts: dict[int, Contract] = {}
        self.former: list[Contract] = []
        self.results: dict[str, tuple[float, str]] = {}
        self.looked: set[str] = set()
        self.last_calls: dict[str, float] = {}
        # Never the same twice, also after a reset: a late request of an earlier test must miss.
        self._idents = itertools.count(FIRST_CONTRACT, 3)
        self._restock()

    async def reset(self) -> None:
        await asyncio.gather(*(contract.destroy() for contract in self.contracts.values()))
        self.contracts.clear()
        self.former.clear()
        self.requests.clear()
        self.account_keys.clear()
        self.results.clear()
        self.last_calls.clear()
        self.machine = Machine()
        # The same object stays, because whoever controls us may hold it.
        vars(self.faults).update(vars(Faults()))
        self._restock()

    def contract(self, ident: int) -> Contract:
        try:
            return self.contracts[ident]
        except KeyError:
            raise KeyError(f"there is no instance {ident}") from None

    def rent(self, offer_id: int, body: dict[str, Any], *, withdraw: bool = True) -> Contract:
        """
        Raises:
            NoSuchAsk: the offer is gone.
        """
        offer = next((each for each in self.offers if each["id"] == offer_id), None)
        if offer is None:
            raise NoSuchAsk(offer_id)
        if withdraw:
            self.offers.remove(offer)
        ident = next(self._idents)
        contract = Contract(
            ident,
            priced(offer, float(body["disk"]), body.get("price")),
            body,
            root=self.directory / "machines" / str(ident),
            machine=self.machine,
            engine=self.engine,
            faults=self.faults,
            boot_seconds=self.boot_seconds,
        )
        self.contracts[ident] = contract
        contract.authorize(self.account_keys.values())
        return contract

    def withdraw(self, offer_id: int) -> None:
        self.offers[:] = [offer for offer in self.offers if offer["id"] != offer_id]

    async def end(self, ident: int) -> None:
        """The instance is no more, and what it occupied is offered again."""
        contract = self.contracts.pop(ident)
        self.former.append(contract)
        await contract.destroy()
        self.withdraw(contract.offer["id"])
        original = next((each for each in OFFERS if each["id"] == contract.offer["id"]), contract.offer)
        self.offers.append(copy.deepcopy(original))

    def spent(self) -> float:
        return sum(contract.spent for contract in [*self.contracts.values(), *self.former])

    def _restock(self) -> None:
        self.offers[:] = copy.deepcopy(list(OFFERS))
