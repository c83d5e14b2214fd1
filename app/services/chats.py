"""Chats of the console: each a title, and the tickets whose reference names it. A ticket tells which one it follows.

So a chat is a tree: an edited message and an answer made again are other tickets that follow the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.db.engine import Database
from app.db.ids import FIRST_ID, time_of, uuid7
from app.errors import ChatNotFound, NotFound, ResultPending
from app.queue.ticket import Status
from app.queue.words import Wanted
from app.services.callers import Caller
from app.services.contexts import Contexts
from app.services.pages import PAGE_BYTES
from app.services.ticket_words import TicketWords, patterns, upper_bound

REFERENCE = "chat:"
# In the metadata of a prompt: the id of the ticket whose answer it goes on from, within the chat or elsewhere.
AFTER, FROM = "after", "from"
TITLE_CHARS = 120
MOST_TICKETS = 2_000
# A search takes the chats of so many of the newest messages with the words, and looks at the titles of so many chats.
MOST_FOUND, TITLES_SEARCHED = 500, 5_000

CREATE = "INSERT INTO chats (id, owner_id, key_id, title) VALUES ($1, $2, $3, $4)"
GET = "SELECT * FROM chats WHERE id = $1 AND owner_id = $2"
USED = "UPDATE chats SET used_at = now() WHERE id = $1 AND owner_id = $2"
RENAME = "UPDATE chats SET title = $3 WHERE id = $1 AND owner_id = $2 RETURNING id"
DELETE = "DELETE FROM chats WHERE id = $1 AND owner_id = $2"
LIST = """
SELECT id, title, used_at FROM chats WHERE owner_id = $1 AND ($2::timestamptz IS NULL OR used_at < $2)
ORDER BY used_at DESC, id LIMIT $3
"""
# The last message of a prompt, without its images.
LAST_TEXT = """CASE jsonb_typeof(c.messages -> -1 -> 'content')
    WHEN 'string' THEN c.messages -> -1 ->> 'content'
    ELSE jsonb_path_query_array(c.messages -> -1 -> 'content', '$[*].text')::text
END"""
# Those in which one of the tickets $2 is, with the oldest of them: a later one has the words in the chat before it; and
# those of the chats used last whose title has all the words $3.
SEARCH = f"""
WITH said AS MATERIALIZED (
    SELECT DISTINCT ON (client_reference) client_reference, id, context_id, output FROM results
    WHERE id = ANY ($2::uuid[]) AND owner_id = $1 ORDER BY client_reference, id
), titled AS MATERIALIZED (
    SELECT id, title, used_at FROM chats WHERE owner_id = $1 ORDER BY used_at DESC LIMIT $5
)
SELECT chat.id, chat.title, chat.used_at, said.id AS result_id,
       left(concat_ws(E'\n', {LAST_TEXT}, said.output), 20000) AS said
FROM (
    SELECT id, title, used_at FROM titled WHERE $4 AND title ILIKE ALL ($3::text[])
    UNION SELECT id, title, used_at FROM chats WHERE owner_id = $1 AND id = ANY ($6::uuid[])
) chat
LEFT JOIN said ON said.client_reference = $7 || chat.id LEFT JOIN contexts c ON c.id = said.context_id
ORDER BY chat.used_at DESC, chat.id LIMIT $8
"""  # noqa: S608
REFERENCES = "SELECT DISTINCT client_reference FROM results WHERE id = ANY ($1::uuid[]) AND owner_id = $2"
# The messages of a prompt that stand behind the last answer in it.
SAID = """(
    SELECT jsonb_agg(each.message ORDER BY each.place)
    FROM jsonb_array_elements(c.messages) WITH ORDINALITY AS each (message, place)
    WHERE each.message ->> 'role' IN ('user', 'tool') AND each.place > coalesce((
        SELECT max(other.place) FROM jsonb_array_elements(c.messages) WITH ORDINALITY AS other (message, place)
        WHERE other.message ->> 'role' = 'assistant'
    ), 0)
)"""
TREE = """
SELECT r.id, c.metadata ->> 'after' AS after, r.status FROM results r JOIN contexts c ON c.id = r.context_id
WHERE r.owner_id = $1 AND r.client_reference = $2 ORDER BY r.id DESC LIMIT $3
"""
# `begun` is all that the first ticket of a chat was sent with. Texts are read as far as they come to $3 bytes together.
TURNS = f"""
SELECT r.id, r.context_id, r.model, r.status, r.attempt_token, r.cancel_requested_at, r.created_at, r.completed_at,
       r.server, r.error_code, r.error_message, r.completion_tokens, r.finish_reason, r.request, c.metadata,
       c.messages -> 0 AS first, {SAID} AS said,
       CASE WHEN c.metadata ->> 'after' IS NULL THEN c.messages END AS begun,
       CASE WHEN sum(octet_length(r.output)) OVER (ORDER BY r.id DESC) <= $3 THEN r.output END AS output
FROM results r JOIN contexts c ON c.id = r.context_id
WHERE r.id = ANY ($1::uuid[]) AND r.owner_id = $2 ORDER BY r.id
"""  # noqa: S608
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """A ticket of a chat; `siblings` are those that follow the same one, itself among them, oldest first."""

    id: UUID
    after: UUID | None
    siblings: Sequence[UUID]


def path(tree: Sequence[tuple[UUID, UUID | None]], at: UUID | None) -> list[Turn]:
    """From the first ticket through `at`, or the newest one, to where it went on last.

    `tree` has each ticket with the one it follows, oldest first; what follows a ticket that is gone is a beginning.
    """
    ids = {id_ for id_, _ in tree}
    parents = {id_: after if after in ids and after != id_ else None for id_, after in tree}
    children: dict[UUID | None, list[UUID]] = {}
    for id_, _ in tree:
        children.setdefault(parents[id_], []).append(id_)
    at = at if at in ids else max(ids, default=None)
    way: list[UUID] = []
    while at is not None and at not in way:
        way.insert(0, at)
        at = parents[at]
    while way and (later := [id_ for id_ in children.get(way[-1], ()) if id_ not in way]):
        way.append(later[-1])
    return [Turn(id_, parents[id_], children.get(parents[id_], [id_])) for id_ in way]


class Chats:
    def __init__(self, database: Database, contexts: Contexts) -> None:
        self._database = database
        self._contexts = contexts
        self._words = TicketWords(database)

    async def create(self, caller: Caller, message: str) -> UUID:
        """A chat without tickets, whose title is how the message begins."""
        id_ = uuid7()
        title = " ".join(message[: 10 * TITLE_CHARS].split())[:TITLE_CHARS]
        async with self._database.hot() as connection:
            await connection.execute(CREATE, id_, caller.owner_id, caller.key_id, title)
        return id_

    async def get(self, caller: Caller, id_: UUID) -> Row:
        """Raises ChatNotFound."""
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(GET, id_, caller.owner_id)
        if row is None:
            raise _missing(id_)
        return row

    async def newest(self, caller: Caller, limit: int, before: datetime | None = None) -> list[Row]:
        """Those used last first; `before` is when the last one of the page before was used."""
        async with self._database.hot() as connection:
            return list(await connection.fetch(LIST, caller.owner_id, before, limit))

    async def search(
        self, caller: Caller, text: str, limit: int, before: datetime | None = None
    ) -> tuple[list[Row], datetime | None]:
        """Chats with all words of `text` in a ticket, which has the chat before it, or in the title; used last first.

        Each with the oldest such ticket of the MOST_FOUND newest sent `before`, and what it says, None and empty where
        the title has the words; and the `before` of the next search, None where there is nothing older.
        """
        wanted = Wanted(caller.owner_id, FIRST_ID, upper_bound(None, before), text=text, of_chats=True)
        found = await self._words.newest(wanted, MOST_FOUND)
        older = time_of(found.ids[-1]) if len(found.ids) == MOST_FOUND else found.looked_back_to
        async with self._database.hot() as connection:
            references = await connection.fetch(REFERENCES, found.ids, caller.owner_id)
            ids = [id_ for row in references if (id_ := chat_of(row["client_reference"]))]
            rows = await connection.fetch(
                SEARCH,
                caller.owner_id,
                found.ids,
                patterns(text),
                before is None,
                TITLES_SEARCHED,
                ids,
                REFERENCE,
                limit,
            )
        return list(rows), older

    async def path(self, caller: Caller, id_: UUID, at: UUID | None = None) -> list[Turn]:
        """From its beginning through the ticket `at`, or its newest one; empty where it has no tickets."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(TREE, caller.owner_id, reference(id_), MOST_TICKETS)
        return path([(row["id"], _uuid(row["after"])) for row in reversed(rows)], at)

    async def turns(self, caller: Caller, ids: Sequence[UUID]) -> dict[UUID, Row]:
        """What the tickets asked and answered; texts up to PAGE_BYTES together, those of the last ones first."""
        async with self._database.hot() as connection:
            return {row["id"]: row for row in await connection.fetch(TURNS, list(ids), caller.owner_id, PAGE_BYTES)}

    async def used(self, caller: Caller, id_: UUID) -> None:
        async with self._database.hot() as connection:
            await connection.execute(USED, id_, caller.owner_id)

    async def rename(self, caller: Caller, id_: UUID, title: str) -> None:
        """Raises ChatNotFound."""
        async with self._database.hot() as connection:
            if await connection.fetchval(RENAME, id_, caller.owner_id, title) is None:
                raise _missing(id_)

    async def delete(self, caller: Caller, id_: UUID) -> None:
        """Removes a chat with its tickets and their prompts.

        Raises:
            ChatNotFound: no such chat.
            ResultPending: an answer is on its way.
        """
        await self.get(caller, id_)
        async with self._database.hot() as connection:
            rows = await connection.fetch(TREE, caller.owner_id, reference(id_), MOST_TICKETS)
        if pending := [row["id"] for row in rows if row["status"] == Status.PENDING]:
            raise ResultPending(
                f"Result {pending[0]} of this chat is pending: stop it or wait for its end, then delete."
            )
        for row in rows:
            try:
                await self._contexts.delete_result(caller, row["id"])
            except NotFound:
                continue
        async with self._database.hot() as connection:
            await connection.execute(DELETE, id_, caller.owner_id)


def reference(id_: UUID) -> str:
    """What the tickets of a chat have as their `client_reference`."""
    return f"{REFERENCE}{id_}"


def chat_of(client_reference: str | None) -> UUID | None:
    """The chat that a ticket with this reference belongs to."""
    if client_reference is None or not client_reference.startswith(REFERENCE):
        return None
    return _uuid(client_reference.removeprefix(REFERENCE))


def _uuid(text: str | None) -> UUID | None:
    try:
        return None if text is None else UUID(text)
    except ValueError:
        return None


def _missing(id_: UUID) -> ChatNotFound:
    return ChatNotFound(f"No chat has the id {id_}. The page of chats lists those there are.")
