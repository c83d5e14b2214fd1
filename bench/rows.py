"""Databases with as many settled rows as a service has after weeks, written in one transaction without WAL."""

from __future__ import annotations

import json
from typing import Any

import asyncpg

from app.db.tables.results import SettledColumns
from app.queue.words import MADE
from tests.conftest import alembic, with_database

DAYS = 60
PART = 250_000
PARAMETERS = {"n": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 64}
PROVENANCE = {
    "server": "gpu1",
    "kind": "triton",
    "engine_version": "2.51.0",
    "model_revision": "1",
    "parameters": PARAMETERS,
}
ANSWER = SettledColumns(
    output="An answer of some length. " * 10,
    finish_reason="stop",
    prompt_tokens=48,
    completion_tokens=64,
    provenance=PROVENANCE,
)
FILLED = (
    *("contexts", "results", "attempts", "batches", "files", "comparisons", "conversations", "conversation_items"),
    "ticket_words",
)
# Texts are made of pieces of ten words, a few of which are in most texts and most of which are in few.
WORDS, PIECES = 30_000, 20_000
# One in so many: of results that fail, of those for the one prompt that all share, of lines of batches.
FAILED, SHARED, BATCHED = 50, 20, 10
# Results for each batch, comparison and conversation.
GROUP = 500
# The oldest are for a model that nobody has asked for since, half of them of an owner who has nothing else.
RARE, RARE_OWNER = 20, 99

AGE = f"make_interval(secs => {DAYS * 86_400} * ($3 - n)::float8 / $3 + 3600)"
TEXTS = f"""
CREATE TEMP TABLE pieces ON COMMIT DROP AS
SELECT piece, string_agg('w' || floor({WORDS} ^ random())::int, ' ') AS text
FROM generate_series(0, {PIECES - 1}) piece, generate_series(1, 10) GROUP BY piece
"""


def _text(first: int, pieces: int) -> str:
    places = ", ".join(
        f"(hashint4((n * 16 + {place})::int) & 2147483647) % {PIECES}" for place in range(first, first + pieces)
    )
    return f"(SELECT string_agg(text, ' ') FROM pieces WHERE piece = ANY (ARRAY[{places}]))"


# Owner 0 has four fifths; rows are made oldest first. Each prompt has a word of its own.
ROWS = f"""
WITH made AS MATERIALIZED (
    SELECT n, now() - age AS at, uuidv7(-age) AS id,
           CASE WHEN n % {SHARED} = 1 THEN $4 ELSE uuidv7(-age - interval '5 ms') END AS context_id,
           CASE WHEN n <= {RARE} THEN 'rare' ELSE 'm' || n % 7 END AS model,
           CASE WHEN n <= {RARE} AND n % 2 = 0 THEN {RARE_OWNER} WHEN n % 5 = 0 THEN n / 5 % 8 + 1 ELSE 0 END
               AS owner_id,
           CASE WHEN n <= {RARE} THEN 'old' ELSE 'gpu' || n % 3 END AS server,
           CASE WHEN n % {FAILED} = 7 THEN CASE n / {FAILED} % 5 WHEN 0 THEN 'expired' ELSE 'engine_error' END END
               AS error,
           (SELECT id FROM numbered_batches b WHERE n % {BATCHED} = 6 AND b.number = n / {GROUP}) AS batch_id
    FROM generate_series($1::int, $2::int) n, LATERAL (SELECT {AGE}) a(age)
), prompts AS (
    INSERT INTO contexts (id, owner_id, created_at, content, metadata)
    SELECT context_id, owner_id, at, 'x' || n || ' ' || {_text(0, 4)},
           CASE WHEN n % 3 = 0 THEN jsonb_build_object('source', jsonb_build_object('name', 'job ' || n % 40)) END
    FROM made WHERE n % {SHARED} <> 1
), ended AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, prompt_tokens,
                          completion_tokens, gpu_seconds, provenance)
    SELECT id, 1, 'd1', server, at, at + interval '2 s', CASE WHEN error IS NULL THEN 'completed' ELSE 'failed' END,
           48, 64, 0.1, $6 FROM made
)
INSERT INTO results (id, context_id, model, parameters, owner_id, rank, created_at, available_at, started_at,
                     completed_at, status, output, finish_reason, prompt_tokens, completion_tokens, provenance,
                     attempt_count, dispatcher, server, error_code, error_message, client_reference, batch_id,
                     batch_line)
SELECT id, context_id, model, $5, owner_id, at, at, at, at, at + interval '2 s',
       CASE WHEN error IS NULL THEN 'completed' ELSE 'failed' END, CASE WHEN error IS NULL THEN {_text(4, 4)} END,
       CASE WHEN error IS NULL THEN 'stop' END, 48, 64, $6, 1, 'd1', server,
       error, CASE WHEN error IS NOT NULL THEN 'The engine failed.' END,
       CASE WHEN n % 10 = 3 THEN 'ref-' || n END, batch_id, CASE WHEN batch_id IS NOT NULL THEN n % {GROUP} END
FROM made
"""
BATCHES = f"""
CREATE TEMP TABLE numbered_batches ON COMMIT DROP AS
SELECT number, uuidv7(-make_interval(secs => {DAYS * 86_400} * greatest(0, part) + 3600)) AS id
FROM generate_series(0, %(rows)s / {GROUP}) number, LATERAL (SELECT 1 - number::float8 * {GROUP} / %(rows)s) p(part)
"""
GROUPS = (
    "INSERT INTO batches (id, owner_id, endpoint, input_file_id, expires_at, status, lease_until, total, completed)"
    " SELECT id, 0, '/v1/completions', id, now(), 'completed', NULL, 50, 50 FROM numbered_batches",
    "INSERT INTO files (id, owner_id, purpose, filename, bytes)"
    " SELECT id, 0, 'batch', 'requests.jsonl', 5000 FROM numbered_batches",
    "INSERT INTO comparisons (id, owner_id, context_id, with_prompt, result_ids, models)"
    " SELECT b.id, 0, b.id, false, array_agg(r.id), ARRAY['m1', 'm2'] FROM numbered_batches b"
    " CROSS JOIN LATERAL (SELECT id FROM results WHERE batch_id = b.id LIMIT 2) r GROUP BY b.id",
    "INSERT INTO conversations (id, owner_id) SELECT id, 0 FROM numbered_batches",
    "INSERT INTO conversation_items (conversation_id, item_id, item)"
    " SELECT id, 'msg_' || n, jsonb_build_object('id', 'msg_' || n, 'content', repeat(md5(n::text), 6))"
    " FROM numbered_batches, generate_series(1, 30) n",
    # A row for each day, owner and model that there is, as what the dispatcher merges comes to.
    "INSERT INTO usage (day, owner_id, model, requests, failures, prompt_tokens, completion_tokens, gpu_seconds)"
    " SELECT (now() AT TIME ZONE 'UTC')::date - day, owner_id, 'm' || model, %(rows)s / 3780, 0, 1, 1, 0"
    f" FROM generate_series(1, {DAYS}) day, generate_series(0, 8) owner_id, generate_series(0, 6) model",
)
INDEXES = """
SELECT c.indexrelid::regclass::text AS name, pg_get_indexdef(c.indexrelid) AS made FROM pg_index c
WHERE c.indrelid = ANY (ARRAY['results', 'contexts', 'attempts', 'ticket_words']::regclass[])
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.indexrelid)
"""


async def filled_database(url: str, name: str, rows: int) -> str:
    """The URL of a database with `rows` settled results; one that is there is taken as it is."""
    admin = await asyncpg.connect(url)
    there = await admin.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name)
    if not there:
        await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    own = with_database(url, name)
    if not there:
        assert alembic(own, "upgrade", "head").returncode == 0
        connection = await asyncpg.connect(own)
        await fill(connection, rows)
        await connection.close()
    return own


async def fill(connection: Any, rows: int) -> None:
    await connection.execute("SET session_replication_role = replica; SET maintenance_work_mem = '512MB'")
    async with connection.transaction():
        await connection.execute(f"TRUNCATE {', '.join(FILLED)}, usage CASCADE")
        indexes = await connection.fetch(INDEXES)
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['name']}")
        await connection.execute(BATCHES % {"rows": rows})
        await connection.execute("CREATE INDEX ON numbered_batches (number)")
        await connection.execute(TEXTS)
        await connection.execute("CREATE INDEX ON pieces (piece)")
        await connection.execute("ANALYZE pieces")
        shared = await connection.fetchval(
            "INSERT INTO contexts (id, content) VALUES (uuidv7(-interval '61 days'), 'Why?') RETURNING id"
        )
        documents = (json.dumps(PARAMETERS), json.dumps(PROVENANCE))
        for first in range(1, rows + 1, PART):
            await connection.execute(ROWS, first, min(first + PART - 1, rows), rows, shared, *documents, timeout=1200)
        await connection.execute(f"INSERT INTO ticket_words {MADE}", timeout=6000)
        await connection.execute(
            "UPDATE ticket_words_progress SET (completed_at, result_id) ="
            " (SELECT completed_at, id FROM results ORDER BY completed_at DESC, id DESC LIMIT 1)"
        )
        for index in indexes:
            await connection.execute(index["made"], timeout=3000)
        for statement in GROUPS:
            await connection.execute(statement % {"rows": rows}, timeout=1200)
    await connection.execute("VACUUM ANALYZE", timeout=1800)
    await connection.execute("CHECKPOINT", timeout=600)
