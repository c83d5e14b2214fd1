"""The vectors of the questions asked in chats: which are wanted, which ticket makes them, and which are near to one.

A vector is stored as plain numbers, so the table needs no extension; searching it needs pgvector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from app.db.engine import Database

# Tickets that make vectors have this `client_reference`, those of a search too.
REFERENCE = "search by meaning"
# Of a question so much is read, and a quarter of it where the model refused it.
QUESTION_CHARS = 2_000
# One that failed so often stays without a vector until a dispatcher starts.
MOST_TRIES = 3
# Whoever searches may wait for one such ticket, which is all that the model has begun.
MOST_TEXTS = 16
MOST_TICKETS = 4
CHATS_AT_ONCE = 20
RENEWED_AT_ONCE = 1_000
# A ticket that is not there by then was never stored.
LOST_SECONDS = 60.0
INDEX_SECONDS = 3_600.0
# pgvector's index takes as many numbers, its types as many more.
MOST_INDEXED, MOST_NUMBERS = 4_000, 16_000
# An owner with as many vectors has all of them compared; with more, the index is asked.
EXACT_UP_TO = 5_000
# Where an index answers, it goes on until it has what is wanted, or has looked at so many vectors of all owners.
MOST_SCANNED = 100_000

EXTENSION = """
SELECT e.extversion AS version, quote_ident(n.nspname) AS schema
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
"""
CREATE_EXTENSION = "CREATE EXTENSION IF NOT EXISTS vector"

# What a person wrote last, without its images; null where a tool spoke last.
QUESTION = """CASE WHEN c.messages -> -1 ->> 'role' = 'user' THEN CASE jsonb_typeof(c.messages -> -1 -> 'content')
    WHEN 'string' THEN c.messages -> -1 ->> 'content'
    ELSE (
        SELECT string_agg(part #>> '{}', E'\\n') FROM jsonb_path_query(c.messages -> -1 -> 'content', '$[*].text') part
    )
END END"""

# An answer made again has the question of the one before.
NOTICE = f"""
WITH chat AS (
    SELECT id, owner_id, used_at FROM chats WHERE noticed_at IS NULL OR noticed_at < used_at
    ORDER BY used_at DESC LIMIT {CHATS_AT_ONCE} FOR UPDATE SKIP LOCKED
), asked AS MATERIALIZED (
    SELECT r.id, r.owner_id, chat.id AS chat_id
    FROM chat JOIN results r ON r.owner_id = chat.owner_id AND r.client_reference = 'chat:' || chat.id
    WHERE r.retry_of IS NULL OR NOT EXISTS (
        SELECT FROM results o WHERE o.id = r.retry_of AND o.client_reference = r.client_reference
    )
    FOR KEY SHARE OF r
), noted AS (
    INSERT INTO question_vectors (result_id, owner_id, chat_id, model) SELECT id, owner_id, chat_id, $1 FROM asked
    ON CONFLICT DO NOTHING
)
UPDATE chats SET noticed_at = chat.used_at FROM chat WHERE chats.id = chat.id RETURNING chats.id
"""  # noqa: S608
# Two ranges of the index, where `<>` would read all of it.
RENEW = f"""
UPDATE question_vectors SET model = $1, vector = NULL, ticket_id = NULL, place = NULL, tries = 0
WHERE result_id = ANY (
    ARRAY(SELECT result_id FROM question_vectors WHERE model < $1 LIMIT {RENEWED_AT_ONCE} FOR UPDATE SKIP LOCKED)
    || ARRAY(SELECT result_id FROM question_vectors WHERE model > $1 LIMIT {RENEWED_AT_ONCE} FOR UPDATE SKIP LOCKED)
)
RETURNING result_id
"""  # noqa: S608
WANTING = f"""
SELECT owner_id FROM question_vectors WHERE vector IS NULL AND tries < {MOST_TRIES}
GROUP BY owner_id HAVING bool_or(ticket_id IS NULL) AND count(DISTINCT ticket_id) < {MOST_TICKETS} ORDER BY owner_id
"""  # noqa: S608
# The newest first; one that failed with others goes alone.
PICK = f"""
SELECT v.result_id, v.tries, left({QUESTION}, CASE WHEN v.tries < 2 THEN {QUESTION_CHARS} ELSE {QUESTION_CHARS} / 4 END)
    AS question
FROM question_vectors v JOIN results r ON r.id = v.result_id JOIN contexts c ON c.id = r.context_id
WHERE v.owner_id = $1 AND v.vector IS NULL AND v.ticket_id IS NULL AND v.tries < {MOST_TRIES}
  AND CASE WHEN $2 THEN v.tries = 0 ELSE v.tries BETWEEN 1 AND {MOST_TRIES - 1} END
ORDER BY v.result_id DESC LIMIT $3 FOR UPDATE OF v SKIP LOCKED
"""  # noqa: S608
TRY_AGAIN = f"UPDATE question_vectors SET tries = 0 WHERE vector IS NULL AND tries = {MOST_TRIES}"  # noqa: S608
GIVE_UP = f"UPDATE question_vectors SET tries = {MOST_TRIES} WHERE result_id = ANY ($1::uuid[])"  # noqa: S608
ASSIGN = """
UPDATE question_vectors v SET ticket_id = $2, place = p.place - 1
FROM unnest($1::uuid[]) WITH ORDINALITY AS p (result_id, place) WHERE v.result_id = p.result_id
"""
# Tickets that ended, and those that are not there.
ENDED = f"""
SELECT t.ticket_id, r.id IS NOT NULL AS stored, r.status, r.output, r.outputs
FROM (SELECT DISTINCT ticket_id FROM question_vectors WHERE ticket_id IS NOT NULL) t
LEFT JOIN results r ON r.id = t.ticket_id
WHERE CASE WHEN r.id IS NULL THEN uuid_extract_timestamp(t.ticket_id) < now() - interval '{LOST_SECONDS} seconds'
      ELSE r.status <> 'pending' END
LIMIT {MOST_TICKETS}
"""  # noqa: S608
HOLD = "SELECT place FROM question_vectors WHERE ticket_id = $1 FOR UPDATE"
KEEP = "UPDATE question_vectors SET vector = $3, ticket_id = NULL, place = NULL WHERE ticket_id = $1 AND place = $2"
FREE = "UPDATE question_vectors SET ticket_id = NULL, place = NULL, tries = tries + $2 WHERE ticket_id = $1"
# What a kill, or a search that nobody waited for, has left of an owner.
LEFT = f"""
SELECT r.id FROM results r
WHERE r.owner_id = $1 AND r.client_reference = '{REFERENCE}' AND r.status <> 'pending' AND r.task = 'embed'
  AND r.completed_at < now() - interval '{LOST_SECONDS} seconds'
  AND NOT EXISTS (SELECT FROM question_vectors v WHERE v.ticket_id = r.id)
LIMIT 100
"""  # noqa: S608
REMOVE = """
DELETE FROM results WHERE id = ANY ($1::uuid[]) AND status <> 'pending' AND task = 'embed' RETURNING context_id
"""
REMOVE_CONTEXTS = """
DELETE FROM contexts c WHERE c.id = ANY ($1::uuid[]) AND NOT EXISTS (SELECT FROM results r WHERE r.context_id = c.id)
"""

# The vector of a question, which may have been asked by an earlier ticket with the same prompt.
VECTOR_OF = f"""
SELECT v.vector, v.chat_id, v.vector IS NULL AND v.tries < {MOST_TRIES} AS pending
FROM results r JOIN results o ON o.context_id = r.context_id JOIN question_vectors v ON v.result_id = o.id
WHERE r.id = $1 AND r.owner_id = $2 AND v.owner_id = $2 AND v.model = $3
ORDER BY v.vector IS NULL, v.result_id LIMIT 1
"""  # noqa: S608
COUNT = f"""
SELECT count(*) FROM (
    SELECT FROM question_vectors WHERE model = $1 AND owner_id = $2 AND cardinality(vector) = $3
    LIMIT {EXACT_UP_TO + 1}
) counted
"""  # noqa: S608
PROGRESS = """
SELECT count(*) FILTER (WHERE vector IS NOT NULL) AS done, count(*) AS questions FROM (
    SELECT vector FROM question_vectors WHERE model = $1 LIMIT 100000
) counted
"""
SHOWN = f"""
SELECT v.result_id, v.chat_id, chat.title, r.created_at, r.model, left({QUESTION}, 400) AS question
FROM question_vectors v JOIN results r ON r.id = v.result_id JOIN contexts c ON c.id = r.context_id
LEFT JOIN chats chat ON chat.id = v.chat_id
WHERE v.result_id = ANY ($1::uuid[]) AND v.owner_id = $2 AND r.owner_id = $2
"""  # noqa: S608

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Extension:
    """pgvector as it is installed; `schema` is quoted."""

    version: str
    schema: str

    @property
    def usable(self) -> bool:
        """Its indexes can be filtered since 0.8."""
        return tuple(int(part) for part in self.version.split(".")[:2]) >= (0, 8)


class QuestionVectorStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def extension(self, *, create: bool = False) -> Extension | None:
        """None where it is not there, and cannot be made where that is wanted."""
        async with self._database.hot() as connection:
            row = await connection.fetchrow(EXTENSION)
            if row is None and create:
                try:
                    await connection.execute(CREATE_EXTENSION)
                except asyncpg.PostgresError as error:
                    # No right to, or no such file on that machine.
                    if error.sqlstate not in ("42501", "58P01", "0A000", "25006"):
                        raise
                    return None
                row = await connection.fetchrow(EXTENSION)
        return None if row is None else Extension(**row)

    async def notice(self, model: str) -> int:
        """Notes the questions of chats that were used since; returns how many chats that were."""
        async with self._database.hot() as connection:
            return len(await connection.fetch(NOTICE, model))

    async def renew(self, model: str) -> int:
        """Drops vectors of other models, so that they are made anew; returns how many."""
        async with self._database.hot() as connection:
            return len(await connection.fetch(RENEW, model))

    async def try_again(self) -> None:
        """Wants vectors of questions that were given up."""
        async with self._database.hot() as connection:
            await connection.execute(TRY_AGAIN)

    async def wanting(self) -> list[int]:
        """Owners of questions without a vector, for whom another ticket may be made."""
        async with self._database.hot() as connection:
            return [row["owner_id"] for row in await connection.fetch(WANTING)]

    async def assign(self, owner_id: int, ticket_id: UUID) -> list[str]:
        """Gives some questions to a ticket that is about to be stored; returns their texts, in order."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(PICK, owner_id, True, MOST_TEXTS)
            if not rows:
                rows = await connection.fetch(PICK, owner_id, False, 1)
            said = [row for row in rows if (row["question"] or "").strip()]
            if len(said) < len(rows):
                await connection.execute(GIVE_UP, [row["result_id"] for row in rows if row not in said])
            if said:
                await connection.execute(ASSIGN, [row["result_id"] for row in said], ticket_id)
        return [row["question"] for row in said]

    async def ended(self) -> list[Row]:
        """Tickets of questions that are final, or were never stored."""
        async with self._database.hot() as connection:
            return list(await connection.fetch(ENDED))

    async def keep(self, ticket_id: UUID, vectors: Sequence[Sequence[float]]) -> None:
        """Stores what the ticket made, in the order of its texts, and removes it; in one transaction."""
        async with self._database.transaction() as connection:
            held = {row["place"] for row in await connection.fetch(HOLD, ticket_id)}
            made = [(ticket_id, place, list(each)) for place, each in enumerate(vectors) if place in held]
            await connection.executemany(KEEP, made)
            await _remove(connection, [ticket_id])

    async def free(self, ticket_id: UUID, *, failed: bool) -> None:
        """Takes the questions back from a ticket, and removes it where it is final."""
        async with self._database.transaction() as connection:
            await connection.execute(FREE, ticket_id, int(failed))
            await _remove(connection, [ticket_id])

    async def sweep(self, owner_id: int) -> None:
        """Removes an owner's final tickets that nobody waits for."""
        async with self._database.transaction() as connection:
            await _remove(connection, [row["id"] for row in await connection.fetch(LEFT, owner_id)])

    async def index(self, numbers: int, extension: Extension) -> None:
        """Makes the index of vectors of so many numbers, unless it is there; raises asyncpg.PostgresError."""
        if numbers <= MOST_INDEXED:
            async with self._database.hot() as connection:
                await connection.execute(create_index(numbers, extension), timeout=INDEX_SECONDS)

    async def progress(self, model: str) -> tuple[int, int]:
        """Of how many questions how many have a vector, up to 100,000."""
        async with self._database.hot() as connection:
            row = await connection.fetchrow(PROGRESS, model)
        return row["done"], row["questions"]

    async def vector_of(self, owner_id: int, result_id: UUID, model: str) -> Row | None:
        """The `vector` of what a ticket asked, and whether it is `pending`; None where it was not noticed yet."""
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(VECTOR_OF, result_id, owner_id, model)
        return row

    async def near(
        self, owner_id: int, model: str, vector: Sequence[float], limit: int, extension: Extension
    ) -> list[tuple[UUID, UUID, float]]:
        """The owner's nearest questions: result, chat and the cosine of the angle between; the nearest first."""
        numbers, schema = len(vector), extension.schema
        async with self._database.transaction() as connection:
            few = await connection.fetchval(COUNT, model, owner_id, numbers) <= EXACT_UP_TO
            if few or numbers > MOST_INDEXED:
                # Another expression than that of the index.
                told, asked = f"vector::{schema}.vector", f"$3::real[]::{schema}.vector"
            else:
                told = f"(vector::{schema}.halfvec({numbers}))"
                asked = f"$3::real[]::{schema}.halfvec({numbers})"
                await connection.execute(
                    "SET LOCAL enable_sort = off; SET LOCAL hnsw.ef_search = 100;"
                    f"SET LOCAL hnsw.iterative_scan = 'strict_order'; SET LOCAL hnsw.max_scan_tuples = {MOST_SCANNED}"
                )
            rows = await connection.fetch(
                f"""
                SELECT result_id, chat_id, {told} OPERATOR({schema}.<=>) {asked} AS distance
                FROM question_vectors WHERE model = $1 AND owner_id = $2 AND cardinality(vector) = {numbers}
                ORDER BY distance LIMIT $4
                """,  # noqa: S608 - a number, and a name that Postgres has quoted
                model,
                owner_id,
                list(vector),
                limit,
            )
        return [(row["result_id"], row["chat_id"], 1 - row["distance"]) for row in rows]

    async def shown(self, owner_id: int, ids: Sequence[UUID]) -> dict[UUID, Row]:
        """What is shown of questions."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(SHOWN, list(ids), owner_id)
        return {row["result_id"]: row for row in rows}


def create_index(numbers: int, extension: Extension) -> str:
    """Half of the precision is enough to find what is near, and makes the index half as large."""
    schema = extension.schema
    return (
        f"CREATE INDEX IF NOT EXISTS question_vectors_near_{numbers} ON question_vectors USING hnsw "
        f"((vector::{schema}.halfvec({numbers})) {schema}.halfvec_cosine_ops) WHERE cardinality(vector) = {numbers}"
    )


async def _remove(connection: Any, ids: Sequence[UUID]) -> None:
    rows = await connection.fetch(REMOVE, list(ids))
    if rows:
        await connection.execute(REMOVE_CONTEXTS, [row["context_id"] for row in rows])
