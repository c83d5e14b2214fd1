"""SQL of the search in tickets: the words and properties of each final one, in one index.

A ticket has one tsvector: the words of its prompt, answer and error, and a lexeme for each property, which begins with
a space, as no word does. Among the properties are the spans of time that its id lies in, from a minute to four years: a
search goes from span to span, the newest first, so what it costs is bounded where millions of tickets have a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.db.engine import Database

# Of the prompt and of the answer each; of a chat, its end.
TEXT_CHARS = 8000
# Longer properties are cut.
PROPERTY_CHARS = 400
METADATA_LEAVES = 50
# The milliseconds of an id without so many last bits: a minute, nine, 70, nine hours, three days, 25, 200, 4 years.
SPANS = (16, 19, 22, 25, 28, 31, 34, 37)
# Tickets without a row are looked for among so many of the owner's newest, and of the newest and oldest pending ones.
LOOKED_AT = 500
# Of all owners' tickets that ended since, so many at most are looked through for the owner's.
UNREAD = 2000

# Characters that Postgres' parser would make something else of than the end of a word, as in paths and addresses.
JOINING = "/._-@:=<>&+~#%?'\"\\|*"
# Scripts without spaces: each of their characters is a word.
IDEOGRAPHS = "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]"


def spaced(text: str) -> str:
    """The SQL of a text as the parser takes it apart into words, and into nothing else."""
    joining = JOINING.replace("'", "''").replace("\\", "\\\\")
    parted = f"translate({text}, E'{joining}', '{' ' * len(JOINING)}')"
    return (
        f"CASE WHEN octet_length({text}) = length({text}) THEN {parted}"
        f" ELSE regexp_replace({parted}, '({IDEOGRAPHS})', ' \\1 ', 'g') END"
    )


# Of results r and contexts c.
SAID = f"""concat_ws(E'\\n',
    CASE WHEN c.messages IS NULL THEN left(c.content, {TEXT_CHARS}) ELSE right(array_to_string(
        ARRAY(SELECT jsonb_path_query(c.messages, '$[*].content ? (@.type() == "string")') #>> '{{}}')
        || ARRAY(SELECT jsonb_path_query(c.messages, '$[*].content[*].text ? (@.type() == "string")') #>> '{{}}'),
        E'\\n'), {TEXT_CHARS}) END,
    left(r.output, {TEXT_CHARS}), left(r.error_message, {PROPERTY_CHARS}))"""
_LEAVES = f"""ARRAY(
    WITH RECURSIVE leaves (path, value) AS (
        SELECT key, value FROM jsonb_each(c.metadata)
        UNION ALL
        SELECT path || '.' || below.key, below.value FROM leaves, LATERAL (
            SELECT key, value FROM jsonb_each(CASE jsonb_typeof(leaves.value) WHEN 'object' THEN leaves.value END)
            UNION ALL
            SELECT (place - 1)::text, value FROM jsonb_array_elements(
                CASE jsonb_typeof(leaves.value) WHEN 'array' THEN leaves.value END
            ) WITH ORDINALITY AS each (value, place)
        ) below
    )
    SELECT ' meta.' || path || '=' || (value #>> '{{}}') FROM leaves
    WHERE jsonb_typeof(value) NOT IN ('object', 'array', 'null') LIMIT {METADATA_LEAVES}
)"""  # noqa: S608
_NAMED = {
    "owner": "r.owner_id::text",
    "state": "r.status",
    "model": "r.model",
    "server": "r.server",
    "key": "r.key_id::text",
    "error": "r.error_code",
    "reference": "r.client_reference",
    # Of a chat of the console, whichever.
    "chat": "CASE WHEN r.client_reference LIKE 'chat:%' THEN 'yes' END",
    "batch": "r.batch_id::text",
    **{f"t{bits}": f"(made.ms >> {bits})::text" for bits in SPANS},
}
_PROPERTIES = ", ".join(f"' {name}=' || {value}" for name, value in _NAMED.items())
# What is not kept has no words.
WORDS = f"""
    CASE WHEN r.kept THEN strip(to_tsvector('simple', {spaced("said.text")})) ELSE '' END
    || array_to_tsvector(ARRAY(
        SELECT left(property, {PROPERTY_CHARS}) FROM unnest(
            ARRAY[{_PROPERTIES}] || CASE WHEN r.kept AND c.metadata IS NOT NULL THEN {_LEAVES} END
        ) property WHERE property IS NOT NULL
    ))"""  # noqa: S608

MADE = f"""
    SELECT r.id, {WORDS}
    FROM results r JOIN contexts c ON c.id = r.context_id,
    LATERAL (SELECT (extract(epoch FROM uuid_extract_timestamp(r.id)) * 1000)::bigint) made (ms),
    LATERAL (SELECT {SAID} OFFSET 0) said (text)
"""  # noqa: S608

# What ended before this was committed: no transaction that is older goes on, or its statement was cancelled long ago.
# Asked for before the statement that looks, which then sees it all.
ALL_ENDED = """
SELECT greatest(now() - interval '60 s', least(now() - interval '2 s', min(xact_start)))
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# One dispatcher at a time: the others meet a locked row.
ADD = f"""
WITH place AS MATERIALIZED (
    SELECT completed_at, result_id FROM ticket_words_progress FOR UPDATE SKIP LOCKED
), due AS MATERIALIZED (
    SELECT id, completed_at FROM results
    WHERE (completed_at, id) > ((SELECT completed_at FROM place), (SELECT result_id FROM place))
      AND completed_at IS NOT NULL AND completed_at < $1
    ORDER BY completed_at, id LIMIT $2 FOR KEY SHARE
), added AS (
    INSERT INTO ticket_words (result_id, words)
    {MADE}
    WHERE r.id = ANY (ARRAY(SELECT id FROM due))
    ON CONFLICT DO NOTHING
), moved AS (
    UPDATE ticket_words_progress SET (completed_at, result_id) =
        (SELECT completed_at, id FROM due ORDER BY completed_at DESC, id DESC LIMIT 1)
    WHERE EXISTS (SELECT FROM due)
)
SELECT count(*) FROM due
"""  # noqa: S608

_ASKED = f"plainto_tsquery('simple', {spaced('$2::text')})"
_FOUND = """
WITH found AS MATERIALIZED (SELECT result_id AS id FROM ticket_words WHERE words @@ ({}))
"""
_WITH_WORDS = _FOUND.format(f"$1::text::tsquery && {_ASKED}")
_WITHOUT = _FOUND.format("$1::text::tsquery || $2::text::tsquery")
_NEWEST = "SELECT id FROM found WHERE id >= $3 AND id < $4 ORDER BY id DESC LIMIT $5"
_COUNT = "SELECT count(*) FROM (SELECT FROM found WHERE id >= $3 AND id < $4 LIMIT $5) counted"

OLDEST = "SELECT id FROM results WHERE owner_id = $1 ORDER BY id LIMIT 1"

_SPAN = "r.owner_id = $1 AND r.id >= $2 AND r.id < $3"
# Those that have no row yet, and whether these are all that ended and all that wait or run.
REST = f"""
WITH unread AS MATERIALIZED (
    SELECT id, owner_id FROM results WHERE completed_at IS NOT NULL
      AND (completed_at, id) > ((SELECT completed_at FROM ticket_words_progress),
                                (SELECT result_id FROM ticket_words_progress))
    ORDER BY completed_at, id LIMIT {UNREAD}
), ended AS MATERIALIZED (
    SELECT id FROM unread WHERE owner_id = $1 AND id >= $2 AND id < $3 LIMIT {LOOKED_AT}
), pending AS MATERIALIZED (
    (SELECT r.id FROM results r WHERE {_SPAN} AND r.status = 'pending' ORDER BY r.id DESC LIMIT {LOOKED_AT})
    UNION (SELECT r.id FROM results r WHERE {_SPAN} AND r.status = 'pending' ORDER BY r.id LIMIT {LOOKED_AT})
), newest AS MATERIALIZED (
    SELECT r.id FROM results r WHERE {_SPAN} ORDER BY r.id DESC LIMIT {LOOKED_AT}
), looked AS MATERIALIZED (
    SELECT id FROM newest WHERE NOT EXISTS (SELECT FROM ticket_words w WHERE w.result_id = newest.id)
    UNION SELECT id FROM ended WHERE NOT EXISTS (SELECT FROM ticket_words w WHERE w.result_id = ended.id)
    UNION SELECT id FROM pending
    -- So that no text is taken apart once there are enough.
    ORDER BY id DESC
)
SELECT ARRAY(SELECT r.id FROM looked JOIN results r ON r.id = looked.id JOIN contexts c ON c.id = r.context_id,
LATERAL (
    SELECT CASE WHEN r.status <> 'pending' THEN r.status WHEN r.attempt_token IS NULL THEN 'queued' ELSE 'running' END
) is_in (state)
WHERE ($4::text IS NULL OR is_in.state = $4) AND ($5::text IS NULL OR r.model = $5)
  AND ($6::text IS NULL OR r.server = $6) AND ($7::text IS NULL OR r.error_code = $7)
  AND ($8::text IS NULL OR r.client_reference = $8) AND ($9::uuid IS NULL OR r.batch_id = $9)
  AND (NOT $14::bool OR r.client_reference LIKE 'chat:%')
  AND ($10::text[] IS NULL OR c.metadata #>> $10 = $11)
  AND ($12::text IS NULL OR EXISTS (
      SELECT FROM (SELECT {SAID} OFFSET 0) said (text)
      WHERE said.text ILIKE ALL ($13::text[])
        AND to_tsvector('simple', {spaced("said.text")}) @@ plainto_tsquery('simple', {spaced("$12::text")})
  ))
  AND ($15::text IS NULL OR r.error_code IS DISTINCT FROM $15) AND ($17::uuid IS NULL OR r.key_id = $17)
ORDER BY looked.id DESC LIMIT $16) AS ids,
(SELECT count(*) FROM unread) < {UNREAD} AND (SELECT count(*) FROM ended) < {LOOKED_AT} AS all_ended,
(SELECT count(*) FROM pending) < 2 * {LOOKED_AT} AS all_pending
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Rest:
    """Tickets without a row; whether all that ended were looked at, and all that wait or run."""

    ids: list[UUID]
    all_ended: bool
    all_pending: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a ticket must have; the ids from `lowest` to below `below`."""

    owner_id: int
    lowest: UUID
    below: UUID
    state: str | None = None
    model: str | None = None
    server: str | None = None
    key_id: UUID | None = None
    error_code: str | None = None
    # Those with this one are left out.
    but_error_code: str | None = None
    reference: str | None = None
    batch_id: UUID | None = None
    metadata: tuple[Sequence[str], str] | None = None
    text: str | None = None
    of_chats: bool = False

    @property
    def properties(self) -> list[str]:
        named = {
            "owner": str(self.owner_id),
            "state": self.state,
            "model": self.model,
            "server": self.server,
            "key": None if self.key_id is None else str(self.key_id),
            "error": self.error_code,
            "reference": self.reference,
            "batch": None if self.batch_id is None else str(self.batch_id),
            "chat": "yes" if self.of_chats else None,
        }
        if self.metadata is not None:
            path, value = self.metadata
            named[f"meta.{'.'.join(path)}"] = value
        without = [] if self.but_error_code is None else [f"!{_lexeme('error', self.but_error_code)}"]
        return [*(_lexeme(name, value) for name, value in named.items() if value is not None), *without]


def _lexeme(name: str, value: str) -> str:
    """As a tsquery has it."""
    text = f" {name}={value}"[:PROPERTY_CHARS].replace("\\", "\\\\").replace("'", "''")
    return f"'{text}'"


class WordStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, limit: int) -> int:
        """Makes the rows of the next `limit` tickets that ended; returns how many there were."""
        async with self._database.hot() as connection:
            moment = await connection.fetchval(ALL_ENDED)
            return int(await connection.fetchval(ADD, moment, limit))

    async def newest(self, wanted: Wanted, bits: int, spans: range, limit: int) -> list[UUID]:
        """Of the spans of time of 2**bits milliseconds, the newest first."""
        async with self._database.hot() as connection:
            statement, arguments = _asked(wanted, bits, spans, _NEWEST)
            return [row["id"] for row in await connection.fetch(statement, *arguments, limit)]

    async def count(self, wanted: Wanted, bits: int, spans: range, limit: int) -> int:
        """How many there are, up to `limit`."""
        async with self._database.hot() as connection:
            statement, arguments = _asked(wanted, bits, spans, _COUNT)
            return int(await connection.fetchval(statement, *arguments, limit))

    async def oldest(self, owner_id: int) -> UUID | None:
        """The id of the owner's oldest ticket; None where there is none."""
        async with self._database.hot() as connection:
            found: UUID | None = await connection.fetchval(OLDEST, owner_id)
        return found

    async def rest(self, wanted: Wanted, patterns: Sequence[str], limit: int | None = None) -> Rest:
        """Those that have no row yet, the newest `limit`; each of the `patterns`, as LIKE has them, is in the text."""
        path, value = (None, None) if wanted.metadata is None else (list(wanted.metadata[0]), wanted.metadata[1])
        async with self._database.hot() as connection:
            row = await connection.fetchrow(
                REST,
                wanted.owner_id,
                wanted.lowest,
                wanted.below,
                wanted.state,
                wanted.model,
                wanted.server,
                wanted.error_code,
                wanted.reference,
                wanted.batch_id,
                path,
                value,
                wanted.text,
                list(patterns),
                wanted.of_chats,
                wanted.but_error_code,
                limit,
                wanted.key_id,
            )
        return Rest(row["ids"], row["all_ended"], row["all_pending"])


def _asked(wanted: Wanted, bits: int, spans: range, then: str) -> tuple[str, list[Any]]:
    times = " | ".join(_lexeme(f"t{bits}", str(span)) for span in spans)
    query = " & ".join([*wanted.properties, f"({times})"])
    bounds = [wanted.lowest, wanted.below]
    if wanted.text is None:
        return _WITHOUT + then, [query, "", *bounds]
    return _WITH_WORDS + then, [query, wanted.text, *bounds]
