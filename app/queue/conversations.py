"""All SQL of conversations.

A response that belongs to one names it in `results.conversation_id` until its items are there: whoever reads the
conversation adds those of the responses that have ended, and a dispatcher does it for those that nobody reads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from app.db.engine import Database
from app.queue.columns import RESULT

Row = Mapping[str, Any]

COLUMNS = "id, metadata, created_at"
INSERT = f"""
INSERT INTO conversations (id, owner_id, key_id, metadata) VALUES ($1, $2, $3, $4::text::jsonb) RETURNING {COLUMNS}
"""
GET = f"SELECT {COLUMNS} FROM conversations WHERE id = $1 AND owner_id = $2"
UPDATE = f"UPDATE conversations SET metadata = $3::text::jsonb WHERE id = $1 AND owner_id = $2 RETURNING {COLUMNS}"
LOCK = "UPDATE conversations SET used_at = now() WHERE id = $1 RETURNING id"
ADD = """
INSERT INTO conversation_items (conversation_id, item_id, item)
SELECT $1, g.id, g.item::jsonb
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS g(id, item, place) ORDER BY g.place
ON CONFLICT DO NOTHING
"""
SIZE = """
SELECT count(*)::int AS items, coalesce(sum(pg_column_size(item)), 0)::bigint AS bytes
FROM conversation_items WHERE conversation_id = $1
"""
# Bounded by bytes as well: a page ends early where its items are large.
PAGE = """
SELECT item_id, item FROM (
    SELECT i.item_id, i.item, i.position, sum(pg_column_size(i.item)) OVER (ORDER BY i.position %(order)s)
               - pg_column_size(i.item) AS before
    FROM conversation_items i
    WHERE i.conversation_id = $1 AND ($2::bigint IS NULL OR i.position %(after)s $2)
    ORDER BY i.position %(order)s LIMIT $3
) page WHERE before <= $4 ORDER BY position %(order)s
"""
NEWEST_FIRST = PAGE % {"order": "DESC", "after": "<"}
OLDEST_FIRST = PAGE % {"order": "ASC", "after": ">"}
ITEM = "SELECT position, item FROM conversation_items WHERE conversation_id = $1 AND item_id = $2"
REMOVE_ITEM = "DELETE FROM conversation_items WHERE conversation_id = $1 AND item_id = $2 RETURNING item_id"
ENDED = f"""
SELECT {RESULT} FROM results WHERE conversation_id = $1 AND status <> 'pending' ORDER BY completed_at, id LIMIT 1
"""
HAS_ENDED = "SELECT id FROM results WHERE conversation_id = $1 AND status <> 'pending' LIMIT 1"
MESSAGES = "SELECT messages FROM contexts WHERE id = $1"
DONE = "UPDATE results SET conversation_id = NULL WHERE id = $1"
LEAVE = "UPDATE results SET conversation_id = NULL WHERE conversation_id = $1"
DELETE = "DELETE FROM conversations WHERE id = $1 AND owner_id = $2 RETURNING id"
LEFT_BEHIND = """
SELECT DISTINCT conversation_id FROM results
WHERE conversation_id IS NOT NULL AND status <> 'pending' AND completed_at < now() - make_interval(secs => $1)
LIMIT $2
"""
REMOVE = """
DELETE FROM conversations WHERE id IN (SELECT id FROM conversations WHERE used_at < $1 ORDER BY used_at LIMIT $2)
"""


def _document(value: Any) -> str | None:
    return None if value is None else to_json(value).decode()


class Adding:
    """A conversation whose row is held until the transaction's end."""

    def __init__(self, connection: Any, id_: UUID) -> None:
        self._connection = connection
        self._id = id_

    async def size(self) -> tuple[int, int]:
        """How many items there are, and what they come to in bytes."""
        row = await self._connection.fetchrow(SIZE, self._id)
        return row["items"], row["bytes"]

    async def add(self, items: Sequence[Mapping[str, Any]]) -> None:
        texts = [to_json(item).decode() for item in items]
        await self._connection.execute(ADD, self._id, [item["id"] for item in items], texts)

    async def ended(self) -> tuple[Row, list[dict[str, Any]]] | None:
        """The next response whose items are not there yet, and the messages that went into it."""
        row: Row | None = await self._connection.fetchrow(ENDED, self._id)
        return None if row is None else (row, await self._connection.fetchval(MESSAGES, row["context_id"]) or [])

    async def done(self, result_id: UUID) -> None:
        await self._connection.execute(DONE, result_id)


class ConversationStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, id_: UUID, owner_id: int, key_id: UUID | None, metadata: Any, items: Sequence[Mapping[str, Any]]
    ) -> Row:
        async with self._database.transaction() as connection:
            row: Row = await connection.fetchrow(INSERT, id_, owner_id, key_id, _document(metadata))
            if items:
                await Adding(connection, id_).add(items)
        return row

    async def get(self, id_: UUID, owner_id: int) -> Row | None:
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(GET, id_, owner_id)
        return row

    async def update(self, id_: UUID, owner_id: int, metadata: Any) -> Row | None:
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(UPDATE, id_, owner_id, _document(metadata))
        return row

    async def delete(self, id_: UUID, owner_id: int) -> bool:
        """What its responses were to add is added nowhere."""
        async with self._database.transaction() as connection:
            gone = await connection.fetchval(DELETE, id_, owner_id) is not None
            if gone:
                await connection.execute(LEAVE, id_)
        return gone

    async def size(self, id_: UUID) -> tuple[int, int]:
        async with self._database.hot() as connection:
            return await Adding(connection, id_).size()

    async def position(self, id_: UUID, item_id: str) -> tuple[int, dict[str, Any]] | None:
        async with self._database.hot() as connection:
            row = await connection.fetchrow(ITEM, id_, item_id)
        return None if row is None else (row["position"], row["item"])

    async def page(
        self, id_: UUID, after: int | None, limit: int, most_bytes: int, *, newest_first: bool
    ) -> list[dict[str, Any]]:
        """At most `limit` items and, but for the last, `most_bytes`."""
        query = NEWEST_FIRST if newest_first else OLDEST_FIRST
        async with self._database.hot() as connection:
            return [row["item"] for row in await connection.fetch(query, id_, after, limit, most_bytes)]

    async def remove_item(self, id_: UUID, item_id: str) -> bool:
        async with self._database.hot() as connection:
            return await connection.fetchval(REMOVE_ITEM, id_, item_id) is not None

    async def has_ended(self, id_: UUID) -> bool:
        """Whether a response has ended whose items are not there yet."""
        async with self._database.hot() as connection:
            return await connection.fetchval(HAS_ENDED, id_) is not None

    @asynccontextmanager
    async def adding(self, id_: UUID) -> AsyncIterator[Adding | None]:
        """None where the conversation is gone."""
        async with self._database.transaction() as connection:
            held = await connection.fetchval(LOCK, id_)
            yield None if held is None else Adding(connection, id_)

    async def leave(self, id_: UUID) -> None:
        """Forgets the responses of a conversation that is gone."""
        async with self._database.hot() as connection:
            await connection.execute(LEAVE, id_)

    async def left_behind(self, seconds: float, limit: int) -> list[UUID]:
        """Conversations of responses that ended `seconds` ago, and whose items are not there yet."""
        async with self._database.hot() as connection:
            return [row["conversation_id"] for row in await connection.fetch(LEFT_BEHIND, seconds, limit)]

    async def remove(self, before: datetime, limit: int) -> int:
        """Removes conversations to which nothing was added since; returns how many."""
        async with self._database.hot() as connection:
            done: str = await connection.execute(REMOVE, before, limit)
        return int(done.split()[-1])
