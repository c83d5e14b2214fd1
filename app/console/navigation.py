"""What stands in the head of every page, in this order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from app.services.callers import Scope


@dataclass(frozen=True, slots=True)
class Entry:
    """A page that the head leads to: `path` is below the console, `key` leads there after `g`; shown to those with
    the `scope`.
    """

    path: str
    name: str
    key: str
    scope: Scope = Scope.READ

    def holds(self, page: str) -> bool:
        """Whether the page, by its path below the console, is this one or one below it."""
        return page == self.path or (self.path != "/" and page.startswith(f"{self.path}/"))


ENTRIES = (
    Entry("/", "Overview", "o"),
    Entry("/tickets", "Tickets", "t"),
    Entry("/batches", "Batches", "b"),
    Entry("/chat", "Chat", "c"),
    Entry("/compare", "Compare", "m"),
    Entry("/models", "Models", "l"),
    Entry("/servers", "Servers", "s", Scope.ADMIN),
    Entry("/hosts", "Hosts", "h", Scope.ADMIN),
    Entry("/usage", "Usage", "u"),
    Entry("/keys", "Keys", "k"),
    Entry("/webhooks", "Webhooks", "w"),
    Entry("/audit", "Audit", "d", Scope.ADMIN),
    Entry("/logs", "Logs", "i", Scope.ADMIN),
    Entry("/settings", "Settings", "e", Scope.ADMIN),
)


def entries(scopes: Collection[Scope]) -> list[Entry]:
    return [entry for entry in ENTRIES if entry.scope in scopes]
