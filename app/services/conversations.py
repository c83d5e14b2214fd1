"""Conversations: items in order, to which each response that belongs to one adds its input and its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from app.config import Settings
from app.db.engine import Database
from app.db.ids import uuid7
from app.errors import ConversationNotFound, ConversationTooLong, NotFound
from app.queue.conversations import ConversationStore
from app.services.callers import Caller
from app.services.retention import removed_or

MOST_ITEMS = 10_000
# What a page may come to, but for its last item.
PAGE_BYTES = 4 * 1024 * 1024
# As many are caught up with at once, and removed.
AT_ONCE = 100

Row = Mapping[str, Any]
Item = dict[str, Any]
# The items that a final response adds; takes its row and the messages that went into it.
ItemsOfTurn = Callable[[Row, list[dict[str, Any]]], list[Item]]


@dataclass(frozen=True, slots=True)
class ItemPage:
    items: list[Item]
    more: bool


class Conversations:
    def __init__(self, database: Database, settings: Settings, items_of_turn: ItemsOfTurn) -> None:
        self._store = ConversationStore(database)
        self._items_of_turn = items_of_turn
        self._most_bytes = settings.max_body_bytes
        self._settings = settings

    async def create(self, caller: Caller, metadata: dict[str, str] | None, items: Sequence[Item]) -> Row:
        return await self._store.create(uuid7(), caller.owner_id, caller.key_id, metadata, items)

    async def get(self, caller: Caller, id_: UUID) -> Row:
        """Raises ConversationNotFound, or Removed when the retention took it."""
        row = await self._store.get(id_, caller.owner_id)
        if row is None:
            raise self._missing(id_)
        return row

    async def update(self, caller: Caller, id_: UUID, metadata: dict[str, str] | None) -> Row:
        """Raises ConversationNotFound."""
        row = await self._store.update(id_, caller.owner_id, metadata)
        if row is None:
            raise self._missing(id_)
        return row

    async def delete(self, caller: Caller, id_: UUID) -> None:
        """Raises ConversationNotFound."""
        if not await self._store.delete(id_, caller.owner_id):
            raise self._missing(id_)

    async def items(self, caller: Caller, id_: UUID) -> list[Item]:
        """All there are, oldest first.

        Raises:
            ConversationNotFound: no such conversation.
            ConversationTooLong: they are more than a request may have.
        """
        await self.get(caller, id_)
        await self.catch_up_with(id_)
        self._require_short(id_, *await self._store.size(id_))
        return await self._store.page(id_, None, MOST_ITEMS, self._most_bytes, newest_first=False)

    async def page(self, caller: Caller, id_: UUID, after: str | None, limit: int, *, newest_first: bool) -> ItemPage:
        """Raises ConversationNotFound, or NotFound for the item `after`."""
        await self.get(caller, id_)
        await self.catch_up_with(id_)
        cursor = None if after is None else (await self._placed(id_, after))[0]
        items = await self._store.page(id_, cursor, limit + 1, PAGE_BYTES, newest_first=newest_first)
        last = await self._store.page(id_, None, 1, 0, newest_first=not newest_first)
        shown = items[:limit]
        return ItemPage(shown, bool(shown) and shown[-1] != last[0])

    async def item(self, caller: Caller, id_: UUID, item_id: str) -> Item:
        """Raises ConversationNotFound, or NotFound for the item."""
        await self.get(caller, id_)
        await self.catch_up_with(id_)
        return (await self._placed(id_, item_id))[1]

    async def remove_item(self, caller: Caller, id_: UUID, item_id: str) -> Row:
        """The conversation without the item; raises ConversationNotFound, or NotFound for the item."""
        row = await self.get(caller, id_)
        await self.catch_up_with(id_)
        if not await self._store.remove_item(id_, item_id):
            raise _no_item(item_id)
        return row

    async def add(self, caller: Caller, id_: UUID, items: Sequence[Item]) -> None:
        """Raises ConversationNotFound, or ConversationTooLong where there is no room for them."""
        await self.get(caller, id_)
        await self.catch_up_with(id_)
        async with self._store.adding(id_) as conversation:
            if conversation is None:
                raise self._missing(id_)
            await conversation.add(items)
            # Within the transaction, so that nothing is added that is too much.
            self._require_short(id_, *await conversation.size())

    async def catch_up_with(self, id_: UUID) -> None:
        """Adds the items of the responses that have ended."""
        while await self._store.has_ended(id_):
            async with self._store.adding(id_) as conversation:
                if conversation is not None:
                    ended = await conversation.ended()
                    if ended is not None:
                        row, messages = ended
                        await conversation.add(self._items_of_turn(row, messages))
                        await conversation.done(row["id"])
            if conversation is None:
                await self._store.leave(id_)

    async def catch_up(self, after_seconds: float) -> None:
        """As `catch_up_with`, for all whose responses ended `after_seconds` ago."""
        while ids := await self._store.left_behind(after_seconds, AT_ONCE):
            for id_ in ids:
                await self.catch_up_with(id_)

    async def remove_old(self, days: float) -> None:
        """Removes conversations to which nothing was added for so long."""
        before = datetime.now(UTC) - timedelta(days=days)
        while await self._store.remove(before, AT_ONCE) == AT_ONCE:
            pass

    async def _placed(self, id_: UUID, item_id: str) -> tuple[int, Item]:
        found = await self._store.position(id_, item_id)
        if found is None:
            raise _no_item(item_id)
        return found

    def _require_short(self, id_: UUID, items: int, size: int) -> None:
        if items > MOST_ITEMS or size > self._most_bytes:
            raise ConversationTooLong(
                f"conv_{id_.hex} would come to more than {MOST_ITEMS:,} items or {self._most_bytes:,} bytes: remove "
                "some of its items, or begin another one."
            )

    def _missing(self, id_: UUID) -> Exception:
        return removed_or(
            id_,
            self._settings.result_retention_days,
            ConversationNotFound(f"No conversation has the id conv_{id_.hex}. POST /v1/conversations makes one."),
        )


def _no_item(item_id: str) -> NotFound:
    return NotFound(f"The conversation has no item with the id {item_id[:100]!r}.")
