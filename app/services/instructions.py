"""Named instructions: texts that chats are begun with. A child's text goes on from its parent's, and follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from app.db.engine import Database
from app.db.ids import uuid7
from app.errors import InstructionsInUse, InstructionsNotFound, invalid
from app.key_errors import ScopeMissing
from app.services.callers import Caller, Scope

MOST_DEPTH = 8
MOST_NAME_CHARS = 120
MOST_TEXT_CHARS = 1_000_000
MOST_LISTED = 500
BETWEEN = "\n\n"

# A shared text is read by all owners, and changed by its own.
SEEN = "(owner_id = $1 OR shared)"
LIST = f"""
SELECT id, owner_id, name, text, parent_id, shared, changed_at FROM instructions WHERE {SEEN}
ORDER BY owner_id <> $1, lower(name), id LIMIT {MOST_LISTED}
"""  # noqa: S608
GET = f"SELECT * FROM instructions WHERE {SEEN} AND id = $2"  # noqa: S608
# From the one asked for up to its first parent.
CHAIN = f"""
WITH RECURSIVE chain AS (
    SELECT id, parent_id, text, 1 AS depth FROM instructions WHERE id = $2 AND {SEEN}
    UNION ALL
    SELECT up.id, up.parent_id, up.text, depth + 1 FROM instructions up JOIN chain ON up.id = chain.parent_id
    WHERE depth <= {MOST_DEPTH} AND (up.owner_id = $1 OR up.shared)
)
SELECT id, text FROM chain ORDER BY depth
"""  # noqa: S608
CREATE = """
INSERT INTO instructions (id, owner_id, key_id, name, text, parent_id, shared) VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
CHANGE = """
UPDATE instructions SET name = $3, text = $4, parent_id = $5, shared = $6, changed_at = now()
WHERE id = $1 AND owner_id = $2
"""
FOLLOWERS = "SELECT count(*) FROM instructions WHERE parent_id = $1 AND ($2::int IS NULL OR owner_id <> $2)"
DELETE = "DELETE FROM instructions WHERE id = $1 AND owner_id = $2"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody writes."""

    name: str
    text: str
    parent_id: UUID | None = None
    shared: bool = False


class Instructions:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def visible(self, caller: Caller) -> list[Row]:
        """The caller's own, then those that others share, by name."""
        async with self._database.hot() as connection:
            return list(await connection.fetch(LIST, caller.owner_id))

    async def get(self, caller: Caller, id_: UUID) -> Row:
        """Raises InstructionsNotFound."""
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(GET, caller.owner_id, id_)
        if row is None:
            raise _missing(id_)
        return row

    async def text(self, caller: Caller, id_: UUID) -> str:
        """The text after those of its parents, the first of them first; raises InstructionsNotFound."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(CHAIN, caller.owner_id, id_)
        if not rows:
            raise _missing(id_)
        return BETWEEN.join(row["text"] for row in reversed(rows))

    async def create(self, caller: Caller, wanted: Wanted) -> UUID:
        """
        Raises:
            InvalidRequest: the name is taken, or there is no such parent.
            ScopeMissing: only admins share.
        """
        id_ = uuid7()
        await self._check(caller, id_, wanted, before=None)
        await self._write(CREATE, id_, caller.owner_id, caller.key_id, *_columns(wanted))
        return id_

    async def change(self, caller: Caller, id_: UUID, wanted: Wanted) -> None:
        """
        Raises:
            InstructionsNotFound: the caller's owner has none of this id.
            InstructionsInUse: those of other owners follow them, who would no longer see them.
            InvalidRequest, ScopeMissing: as `create`.
        """
        before = await self.get(caller, id_)
        if before["owner_id"] != caller.owner_id:
            raise _missing(id_)
        if before["shared"] and not wanted.shared:
            await self._require_unfollowed(id_, caller.owner_id, "stop sharing")
        await self._check(caller, id_, wanted, before)
        await self._write(CHANGE, id_, caller.owner_id, *_columns(wanted))

    async def delete(self, caller: Caller, id_: UUID) -> None:
        """
        Raises:
            InstructionsNotFound: the caller's owner has none of this id.
            InstructionsInUse: others have it as their parent.
        """
        if (await self.get(caller, id_))["owner_id"] != caller.owner_id:
            raise _missing(id_)
        await self._require_unfollowed(id_, None, "delete")
        try:
            async with self._database.hot() as connection:
                await connection.execute(DELETE, id_, caller.owner_id)
        except asyncpg.ForeignKeyViolationError:
            raise InstructionsInUse("Others follow them since just now: give those another parent first.") from None

    async def _check(self, caller: Caller, id_: UUID, wanted: Wanted, before: Row | None) -> None:
        if wanted.shared and not (before is not None and before["shared"]) and Scope.ADMIN not in caller.scopes:
            raise ScopeMissing("Only a key with the scope admin shares instructions with all owners.")
        if wanted.parent_id is not None:
            async with self._database.hot() as connection:
                chain = await connection.fetch(CHAIN, caller.owner_id, wanted.parent_id)
            if not chain:
                raise invalid("parent_id", "names no instructions that you can see")
            if id_ in {row["id"] for row in chain}:
                raise invalid("parent_id", "follows these instructions itself")
            if len(chain) >= MOST_DEPTH:
                raise invalid("parent_id", f"has {MOST_DEPTH - 1} parents above it already, which is the most")
            if wanted.shared and not (await self.get(caller, wanted.parent_id))["shared"]:
                raise invalid("parent_id", "is not shared: what all owners see can only follow what they see")

    async def _require_unfollowed(self, id_: UUID, besides: int | None, doing: str) -> None:
        async with self._database.hot() as connection:
            number = await connection.fetchval(FOLLOWERS, id_, besides)
        if number:
            raise InstructionsInUse(f"{number} others follow them: give those another parent, then {doing}.")

    async def _write(self, statement: str, *values: Any) -> None:
        try:
            async with self._database.hot() as connection:
                await connection.execute(statement, *values)
        except asyncpg.UniqueViolationError:
            raise invalid("name", "is that of other instructions of yours") from None
        except asyncpg.ForeignKeyViolationError:
            raise invalid("parent_id", "has just been deleted") from None


def _columns(wanted: Wanted) -> tuple[Any, ...]:
    return wanted.name, wanted.text, wanted.parent_id, wanted.shared


def _missing(id_: UUID) -> InstructionsNotFound:
    return InstructionsNotFound(
        f"No instructions of yours have the id {id_}. GET /instructions/ lists those there are."
    )
