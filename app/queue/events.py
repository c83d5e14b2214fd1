"""All SQL of the stored events: what a generation has said so far, kept while somebody may follow it.

A row holds what the choices of a result said since the row before. Each entry says where it begins (`at`, in
characters, and `token`, in tokens with logprobs), so that a reader sees by itself whether a row goes on, repeats what
an earlier attempt had said, or says something else, and how many tokens its text and the prompt came to by then. Of a
model that takes tensors, an entry is an output of a response, with its number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import UUID

from app.db.engine import Database
from app.queue import locks

ROWS_CHANNEL = "results_event_rows"
STREAM_CHANNEL = "results_stream"

ROWS_PER_READ = 1000
# As they are stored, of all results together, or one row.
BYTES_PER_READ = 1024 * 1024
ROWS_PER_DROP = 2000
# Postgres takes less than 8,000 bytes in a notification, and a line of one goes on where there were fewer than this. A
# larger row is told without its choices.
NOTIFIED_BYTES = 4000
NOTIFIED_CHOICES_BYTES = 3900

# The rows of results stay locked until this commits, so that no event can follow a settle or another claim. What is
# locked at the moment is left for the next time: waiting for it could end in a deadlock with renewals and settles.
# The first event of a run waits for the disk, and takes the claim along, which did not: a crash of Postgres must not
# forget a claim whose words somebody has read. Later events need not wait, their dispatcher can write them again. A
# token means that the result is pending; asking for that as well would invite a scan of the whole queue.
# What was written goes along with the notifications: followers read only what these do not tell.
WRITE = f"""
WITH unflushed AS MATERIALIZED (
    SELECT CASE WHEN $5::bool THEN set_config('synchronous_commit', 'off', true) END
), given AS (
    SELECT g.id, g.token, g.sequence, g.choices
    FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[]) AS g(id, token, sequence, choices), unflushed
), held AS MATERIALIZED (
    SELECT r.id, r.attempt_token, r.attempt_count
    FROM (SELECT DISTINCT id, token FROM given) g JOIN results r ON r.id = g.id
    WHERE r.attempt_token = g.token
    FOR NO KEY UPDATE OF r SKIP LOCKED
), written AS (
    INSERT INTO result_events (result_id, sequence, attempt, choices)
    SELECT h.id, coalesce(
               g.sequence,
               (SELECT e.sequence + 1 FROM result_events e WHERE e.result_id = h.id ORDER BY e.sequence DESC LIMIT 1),
               0
           ), h.attempt_count, g.choices::jsonb
    FROM held h JOIN given g ON g.id = h.id AND g.token = h.attempt_token
    ON CONFLICT (result_id, sequence) DO NOTHING
    RETURNING result_id, sequence, choices::text
), lines AS (
    SELECT result_id, sequence, concat_ws(
               ' ', result_id, sequence, CASE WHEN octet_length(choices) <= {NOTIFIED_CHOICES_BYTES} THEN choices END
           ) AS line
    FROM written
), parts AS (
    SELECT *, sum(octet_length(line) + 1) OVER (ORDER BY result_id, sequence) / {NOTIFIED_BYTES} AS part FROM lines
), woken AS (
    SELECT pg_notify('{ROWS_CHANNEL}', p.payload) FROM (
        SELECT string_agg(line, chr(10) ORDER BY result_id, sequence) AS payload FROM parts GROUP BY part ORDER BY part
    ) p
)
SELECT h.attempt_token AS token, max(w.sequence) AS sequence, (SELECT count(*) FROM woken)
FROM held h LEFT JOIN written w ON w.result_id = h.id
GROUP BY h.attempt_token
"""

# Only a follower makes a running result store its events; the dispatcher that runs it is told. It does not wait for the
# disk: commits that notify go one by one, and whoever is second would wait for it too.
FOLLOW = f"""
WITH unflushed AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), begun AS (
    UPDATE results SET streamed = true
    FROM unflushed
    WHERE id = $1 AND owner_id = $2 AND status = 'pending' AND NOT streamed
    RETURNING id, attempt_token
), told AS (
    SELECT pg_notify('{STREAM_CHANNEL}', id::text) FROM begun WHERE attempt_token IS NOT NULL
)
SELECT streamed AND coalesce(completed_at < now() - make_interval(secs => $3), false) AS expired,
       (SELECT count(*) FROM told)
FROM results WHERE id = $1 AND owner_id = $2
"""


LAST = """
SELECT g.id, (SELECT e.sequence FROM result_events e WHERE e.result_id = g.id ORDER BY e.sequence DESC LIMIT 1) AS last
FROM unnest($1::uuid[]) AS g(id)
"""

# Status and events come from one snapshot: where the status is final, no later read finds more events than this one.
# The sizes of all rows are known without reading large ones. A result none of whose rows fits has one without choices.
READ = f"""
WITH found AS MATERIALIZED (
    SELECT g.id, coalesce(r.status <> 'pending', true) AS final, e.sequence,
           count(e.sequence) OVER (PARTITION BY g.id) AS there,
           row_number() OVER (PARTITION BY g.id ORDER BY e.sequence) AS nth,
           coalesce(sum(e.bytes) OVER so_far, 0) AS total, e.bytes
    FROM unnest($1::uuid[], $2::int[]) AS g(id, after)
    LEFT JOIN results r ON r.id = g.id
    LEFT JOIN LATERAL (
        SELECT sequence, pg_column_size(choices) AS bytes FROM result_events
        WHERE result_id = g.id AND sequence > g.after
        ORDER BY sequence LIMIT {ROWS_PER_READ}
    ) e ON true
    WINDOW so_far AS (ORDER BY g.id, e.sequence)
), judged AS (
    SELECT *, sequence IS NOT NULL AND (total <= {BYTES_PER_READ} OR total = bytes) AS fits FROM found
)
SELECT id, final, there, sequence, fits, CASE WHEN fits THEN (
    SELECT e.choices FROM result_events e WHERE e.result_id = judged.id AND e.sequence = judged.sequence
) END AS choices
FROM judged
WHERE fits OR nth = 1
ORDER BY id, sequence
"""

# By age, from a cursor on: what belongs to results that still run or ended just now stays and is stepped over.
DROP = f"""
WITH mine AS (
    SELECT pg_try_advisory_xact_lock({locks.EVENTS}) AS held
), old AS MATERIALIZED (
    SELECT result_id, sequence, created_at FROM result_events, mine
    WHERE held AND created_at >= $1 AND created_at < now() - make_interval(secs => $2)
    ORDER BY created_at LIMIT {ROWS_PER_DROP}
), over AS MATERIALIZED (
    SELECT o.result_id, o.sequence FROM old o LEFT JOIN results r ON r.id = o.result_id
    WHERE r.id IS NULL OR r.completed_at < now() - make_interval(secs => $2)
), dropped AS (
    DELETE FROM result_events e USING over o WHERE e.result_id = o.result_id AND e.sequence = o.sequence RETURNING 1
)
SELECT count(*) AS seen, max(created_at) AS last, (SELECT count(*) FROM dropped) AS dropped FROM old
"""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A row to store for the claim `token` of the result `id`; without `sequence` it gets the next one there."""

    id: UUID
    token: UUID
    sequence: int | None
    choices: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What a read found of one result: rows as (sequence, choices); `more` says whether others may be read at once."""

    id: UUID
    rows: list[tuple[int, list[dict[str, Any]]]]
    final: bool
    more: bool


def rows_told(payload: str) -> Iterator[tuple[UUID, int, str | None]]:
    """The rows of a notification as (result, sequence, choices as JSON), in order; a large one without its choices."""
    for line in payload.split("\n"):
        id_, sequence, *choices = line.split(" ", 2)
        yield UUID(id_), int(sequence), choices[0] if choices else None


class EventStore:
    """The statements of events; every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, rows: Sequence[Spoken]) -> dict[UUID, int | None]:
        """Stores rows of at most IDS_PER_NOTIFY results, those whose claim still holds and whose result is not locked.

        Returns what was done, by token: the highest sequence written now, None where all were there already.
        """
        async with self._database.hot() as connection:
            found = await connection.fetch(
                WRITE,
                [row.id for row in rows],
                [row.token for row in rows],
                [row.sequence for row in rows],
                [row.choices for row in rows],
                all(row.sequence is not None for row in rows),
            )
        return {row["token"]: row["sequence"] for row in found}

    async def follow(self, id_: UUID, owner_id: int, kept_seconds: float) -> bool | None:
        """Has the events of a pending result stored from now on; None when the owner has no such result.

        True when it ended more than `kept_seconds` ago, and its events may be gone.
        """
        async with self._database.hot() as connection:
            row = await connection.fetchrow(FOLLOW, id_, owner_id, kept_seconds)
        return None if row is None else bool(row["expired"])

    async def last(self, ids: Sequence[UUID]) -> dict[UUID, int]:
        """The highest sequence stored of each result, -1 for none."""
        async with self._database.hot() as connection:
            found = await connection.fetch(LAST, ids)
        return {row["id"]: -1 if row["last"] is None else row["last"] for row in found}

    async def read(self, cursors: Sequence[tuple[UUID, int]]) -> list[Stored]:
        """For each (result, last sequence seen, -1 for none), what came after; one statement for all.

        At most ROWS_PER_READ rows of each, and BYTES_PER_READ of all, in the order of their ids; the first of those
        that have any gets at least one row.
        """
        async with self._database.hot() as connection:
            found = await connection.fetch(READ, [id_ for id_, _ in cursors], [after for _, after in cursors])
        stored = []
        for id_, group in groupby(found, key=itemgetter("id")):
            of_it = list(group)
            rows = [(row["sequence"], row["choices"]) for row in of_it if row["fits"]]
            more = len(rows) < of_it[0]["there"] or len(rows) == ROWS_PER_READ
            stored.append(Stored(id_, rows, of_it[0]["final"], more))
        return stored

    async def drop(self, older_than: datetime, kept_seconds: float) -> tuple[int, datetime | None]:
        """Removes events of results that ended `kept_seconds` ago.

        Looks at those from the moment `older_than` on; returns how many it removed, and where to go on if there may
        be more.
        """
        async with self._database.hot() as connection:
            row = await connection.fetchrow(DROP, older_than, kept_seconds)
        further = row["seen"] == ROWS_PER_DROP and row["last"] > older_than
        return row["dropped"], row["last"] if further else None
