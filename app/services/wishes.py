"""What a ticket wishes of its server: one by name, or kinds. It is stored as a text, which the claim compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.engines.registry import ENGINES
from app.errors import invalid
from app.fleet.fleet import Fleet
from app.fleet.lanes import Server
from app.queue.servers import ServerStore
from app.services.catalog import Catalog

SERVER, KINDS = "server:", "kinds:"
NAMES_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Wish:
    """A server's name, or some kinds; neither is no wish."""

    server: str | None = None
    kinds: Sequence[str] = ()

    @classmethod
    def of(cls, stored: str) -> Wish:
        if stored.startswith(SERVER):
            return cls(stored.removeprefix(SERVER))
        return cls(kinds=stored.removeprefix(KINDS).split(",")) if stored else cls()

    @property
    def stored(self) -> str:
        if self.server is not None:
            return f"{SERVER}{self.server}"
        return f"{KINDS}{','.join(sorted(set(self.kinds)))}" if self.kinds else ""

    @property
    def distinct(self) -> list[str]:
        """What it adds to the digest of a request."""
        return [self.stored] if self.stored else []

    def is_met_by(self, server: Server) -> bool:
        if self.server is not None:
            return server.title == self.server
        return not self.kinds or server.entry.kind in self.kinds

    def __str__(self) -> str:
        if self.server is not None:
            return f"the server {self.server}"
        return f"a server of the kind {' or '.join(self.kinds)}"


ANY = Wish()


class Wishes:
    """Checks wishes, and says why one is not met."""

    def __init__(self, catalog: Catalog, fleet: Fleet, store: ServerStore) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._store = store

    async def require(self, wish: Wish) -> None:
        """

        Raises:
            InvalidRequest: there is no server of that name, or no such kind.
        """
        if wish.server is not None and all(server.title != wish.server for server in self._fleet.servers):
            # Those that this process has not seen yet, and those that are disabled.
            names = sorted({row["name"] for row in await self._store.list()} | {s.title for s in self._fleet.servers})
            if wish.server not in names:
                shown = ", ".join(names[:NAMES_SHOWN]) + (" ..." if len(names) > NAMES_SHOWN else "")
                there = f"there are: {shown}" if names else "there are none"
                raise invalid("server", f"no server is called {wish.server!r}; {there}")
        for kind in wish.kinds:
            if kind not in ENGINES:
                raise invalid("server_kinds", f"{kind!r} is none of {', '.join(ENGINES)}")

    def unmet(self, wish: Wish, model: str) -> str | None:
        """Why no server that the wish is for takes a ticket of the model now, and what to do; None where one does."""
        servers = [server for server in self._fleet.servers if wish.is_met_by(server)]
        if not servers:
            return f"It waits for {wish}, and there is none now: add or activate one, {_OR_ELSE}"
        states = {server: (state, reason) for server, state, reason in self._catalog.states_of(model)}
        lacking = []
        for server in servers:
            state, reason = states.get(server, ("", ""))
            if state == "ready":
                return None
            if not server.up:
                state, reason = "unavailable", server.reason
            lacking.append(
                f"{server.title} "
                + (f"has the model {state}" if state else f"has no model {model}")
                + (f" ({reason.rstrip('.')})" if reason else "")
            )
        return f"It waits for {wish}: {'; '.join(lacking)}. Mend that, {_OR_ELSE}"


_OR_ELSE = "or cancel this ticket and send its context again without the wish."
