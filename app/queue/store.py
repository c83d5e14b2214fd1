"""All SQL of the queue. The results table is the queue; every statement here is one round trip.

A claim is a row whose `attempt_token` is set and whose `available_at` is the end of its lease. Renew, settle and
release name the token, so a dispatcher that lost its lease changes no row.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from app.db.engine import Database
from app.queue.ticket import (
    CANCELLED,
    CANCELLED_MESSAGE,
    EXPIRED,
    EXPIRED_MESSAGE,
    Claim,
    Held,
    Idempotency,
    Release,
    Settlement,
    Submission,
)

QUEUED_CHANNEL = "results_queued"
SETTLED_CHANNEL = "results_settled"
CANCEL_CHANNEL = "results_cancel"

# NOTIFY carries less than 8,000 bytes; an id and its comma are 37.
IDS_PER_NOTIFY = 200

IDEMPOTENCY_HOURS = 24

# A key that is in use conflicts, also while the request that brought it is still under way; an old one is free again.
TAKE_OVER_OLD_KEY = f"""ON CONFLICT (key) DO UPDATE
    SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id, created_at = now()
    WHERE k.created_at < now() - interval '{IDEMPOTENCY_HOURS} hours'"""

CREATE_CONTEXT = f"""
WITH keyed AS (
    INSERT INTO idempotency_keys AS k (key, fingerprint, resource_id)
    SELECT $5::text, $6::bytea, $1::uuid WHERE $5::text IS NOT NULL
    {TAKE_OVER_OLD_KEY}
    RETURNING resource_id
)
INSERT INTO contexts (id, content, metadata, created_at)
SELECT $1, $2, $3::text::jsonb, $4 WHERE $5::text IS NULL OR EXISTS (SELECT FROM keyed)
RETURNING id
"""

KEY_IN_USE = f"""
SELECT fingerprint, resource_id FROM idempotency_keys
WHERE key = $1 AND created_at >= now() - interval '{IDEMPOTENCY_HOURS} hours'
"""

SUBMIT = f"""
WITH given AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::int[], $6::timestamptz[], $7::timestamptz[],
        $8::timestamptz[], $9::text[], $10::uuid[], $11::text[], $12::bytea[]
    ) AS g(id, context_id, model, parameters, priority, rank, created_at, expires_at, client_reference, retry_of,
           key, fingerprint)
), possible AS (
    SELECT g.* FROM given g JOIN contexts c ON c.id = g.context_id
), keyed AS (
    INSERT INTO idempotency_keys AS k (key, fingerprint, resource_id)
    SELECT key, fingerprint, id FROM possible WHERE key IS NOT NULL
    {TAKE_OVER_OLD_KEY}
    RETURNING resource_id
), stored AS (
    INSERT INTO results (
        id, context_id, model, parameters, priority, rank, created_at, expires_at, client_reference, retry_of
    )
    SELECT id, context_id, model, parameters::jsonb, priority, rank, created_at, expires_at, client_reference, retry_of
    FROM possible p WHERE key IS NULL OR EXISTS (SELECT FROM keyed WHERE resource_id = p.id)
    RETURNING id
), woken AS (
    SELECT pg_notify('{QUEUED_CHANNEL}', '') WHERE EXISTS (SELECT FROM stored)
)
SELECT id, (SELECT count(*) FROM woken) FROM stored
"""

# A claim need not wait for the disk: one that a crash of Postgres forgets leaves the result queued, and its token void.
# An expired lease is claimable again; the attempt it belonged to goes into the ledger in the same statement.
CLAIM = """
WITH unflushed AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), slots AS (
    SELECT model, server, row_number() OVER (PARTITION BY model ORDER BY place) AS number
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS s(model, server, place), unflushed
), wanted AS (
    SELECT model, count(*) AS n FROM slots GROUP BY model
), picked AS MATERIALIZED (
    SELECT p.id, w.model, row_number() OVER (PARTITION BY w.model ORDER BY p.rank, p.id) AS number
    FROM wanted w CROSS JOIN LATERAL (
        SELECT r.id, r.rank FROM results r
        WHERE r.status = 'pending' AND r.model = w.model AND r.available_at <= now()
          AND (r.attempt_token IS NULL OR r.attempt_token <> ALL ($5::uuid[]))
        ORDER BY r.rank, r.id
        LIMIT w.n
        FOR UPDATE SKIP LOCKED
    ) p
), claimed AS (
    UPDATE results r SET
        attempt_count = r.attempt_count + 1,
        attempt_token = gen_random_uuid(),
        attempt_started_at = now(),
        started_at = coalesce(r.started_at, now()),
        available_at = now() + make_interval(secs => $3),
        dispatcher = $4,
        server = slots.server
    FROM picked JOIN slots USING (model, number)
    WHERE r.id = picked.id
    RETURNING
        r.id, r.server, r.attempt_token, r.model, r.context_id, r.parameters, r.attempt_count, r.rank,
        extract(epoch FROM r.expires_at - now())::float8 AS expires_in,
        r.cancel_requested_at IS NOT NULL AS cancel_requested,
        r.error_code, r.error_message,
        old.attempt_token AS lost_token, old.attempt_count AS lost_attempt, old.dispatcher AS lost_dispatcher,
        old.server AS lost_server, old.attempt_started_at AS lost_started_at
), recorded AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message)
    SELECT id, lost_attempt, lost_dispatcher, lost_server, lost_started_at, now(), 'lease_lost', 'dispatcher_lost',
           'The dispatcher stopped renewing its lease; the attempt counts as lost.'
    FROM claimed WHERE lost_token IS NOT NULL
)
SELECT q.*, c.content FROM claimed q JOIN contexts c ON c.id = q.context_id ORDER BY q.rank, q.id
"""

RENEW = """
UPDATE results r SET available_at = now() + make_interval(secs => $4), server = coalesce(g.server, r.server)
FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS g(id, token, server)
WHERE r.id = g.id AND r.attempt_token = g.token AND r.status = 'pending'
RETURNING r.attempt_token AS token, r.cancel_requested_at IS NOT NULL AS cancel_requested,
          coalesce(r.expires_at <= now(), false) AS expired
"""

SETTLE = f"""
WITH given AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::int[],
        $10::int[], $11::text[], $12::text[], $13::bool[], $14::bool[]
    ) AS g(id, token, status, outcome, server, output, outputs, finish_reason, prompt_tokens, completion_tokens,
           error_code, error_message, spent, engine_stopped)
), settled AS (
    UPDATE results r SET
        status = g.status,
        completed_at = now(),
        attempt_token = NULL,
        attempt_started_at = NULL,
        attempt_count = r.attempt_count - CASE WHEN g.spent THEN 0 ELSE 1 END,
        server = coalesce(g.server, r.server),
        output = g.output,
        outputs = g.outputs::jsonb,
        finish_reason = g.finish_reason,
        prompt_tokens = g.prompt_tokens,
        completion_tokens = g.completion_tokens,
        error_code = g.error_code,
        error_message = g.error_message,
        engine_stopped_at = CASE WHEN g.engine_stopped THEN now() END
    FROM given g
    WHERE r.id = g.id AND r.attempt_token = g.token AND r.status = 'pending'
    RETURNING r.id, r.attempt_count, r.dispatcher, r.server, old.attempt_started_at AS attempt_started_at,
              g.outcome, g.spent, r.error_code, r.error_message, r.prompt_tokens, r.completion_tokens
), recorded AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message, prompt_tokens, completion_tokens)
    SELECT id, attempt_count, dispatcher, server, attempt_started_at, now(), outcome, error_code, error_message,
           prompt_tokens, completion_tokens
    FROM settled WHERE spent
), woken AS (
    SELECT pg_notify('{SETTLED_CHANNEL}', string_agg(id::text, ',')) FROM settled HAVING count(*) > 0
)
SELECT id, (SELECT count(*) FROM woken) FROM settled
"""

RELEASE = f"""
WITH given AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::float8[], $6::bool[], $7::text[], $8::text[]
    ) AS g(id, token, outcome, server, delay, spent, error_code, error_message)
), released AS (
    UPDATE results r SET
        available_at = now() + make_interval(secs => g.delay),
        attempt_token = NULL,
        attempt_started_at = NULL,
        attempt_count = r.attempt_count - CASE WHEN g.spent THEN 0 ELSE 1 END,
        server = coalesce(g.server, r.server),
        error_code = coalesce(g.error_code, r.error_code),
        error_message = coalesce(g.error_message, r.error_message)
    FROM given g
    WHERE r.id = g.id AND r.attempt_token = g.token AND r.status = 'pending'
    RETURNING r.id, r.attempt_count, r.dispatcher, r.server, old.attempt_started_at AS attempt_started_at,
              g.outcome, g.spent, g.error_code, g.error_message
), recorded AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message)
    SELECT id, attempt_count, dispatcher, server, attempt_started_at, now(), outcome, error_code, error_message
    FROM released WHERE spent
), woken AS (
    SELECT pg_notify('{QUEUED_CHANNEL}', '') WHERE EXISTS (SELECT FROM released)
)
SELECT id, (SELECT count(*) FROM woken) FROM released
"""

# Not claimed, or claimed by a dispatcher that is gone: final at once. Else the claimer is told and settles.
CANCEL = f"""
WITH asked AS (
    UPDATE results SET
        cancel_requested_at = coalesce(cancel_requested_at, now()),
        status = CASE WHEN attempt_token IS NULL OR available_at <= now() THEN 'failed' ELSE status END,
        completed_at = CASE WHEN attempt_token IS NULL OR available_at <= now() THEN now() END,
        error_code = CASE WHEN attempt_token IS NULL OR available_at <= now() THEN '{CANCELLED}' ELSE error_code END,
        error_message = CASE WHEN attempt_token IS NULL OR available_at <= now() THEN '{CANCELLED_MESSAGE}'
                             ELSE error_message END,
        attempt_token = CASE WHEN available_at > now() THEN attempt_token END,
        attempt_started_at = CASE WHEN available_at > now() THEN attempt_started_at END
    WHERE id = $1 AND status = 'pending'
    RETURNING id, status, new.attempt_count AS number, old.attempt_token AS token, old.dispatcher AS dispatcher,
              old.server AS server, old.attempt_started_at AS attempt_started_at
), recorded AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message)
    SELECT id, number, dispatcher, server, attempt_started_at, now(), 'lease_lost', 'dispatcher_lost',
           'The dispatcher stopped renewing its lease; the attempt counts as lost.'
    FROM asked WHERE status = 'failed' AND token IS NOT NULL
)
SELECT pg_notify(CASE WHEN status = 'failed' THEN '{SETTLED_CHANNEL}' ELSE '{CANCEL_CHANNEL}' END, id::text)
FROM asked
"""

POSITION_LIMIT = 1000

# How many are ahead, counted no further than anyone cares to read.
POSITION = f"""
SELECT count(*) + 1 FROM (
    SELECT FROM results
    WHERE status = 'pending' AND model = $1 AND attempt_token IS NULL AND available_at <= now()
      AND (rank, id) < ($2, $3)
    ORDER BY rank, id LIMIT {POSITION_LIMIT}
) ahead
"""

CANCELLING = "SELECT id FROM results WHERE status = 'pending' AND cancel_requested_at IS NOT NULL"

# What the retention takes, oldest first; the id bounds the scan. One dispatcher at a time is enough.
REMOVE = """
WITH mine AS (
    SELECT pg_try_advisory_xact_lock(8887002) AS held
), old AS MATERIALIZED (
    SELECT id, context_id FROM results, mine
    WHERE held AND id < $1 AND status <> 'pending' AND completed_at < now() - make_interval(secs => $2)
    ORDER BY id LIMIT $3 FOR UPDATE OF results SKIP LOCKED
), removed AS (
    DELETE FROM results r USING old WHERE r.id = old.id RETURNING r.id
)
SELECT context_id FROM old, (SELECT count(*) FROM removed) counted
"""

# A context goes with its last result; one without results goes by its own age.
REMOVE_CONTEXTS = """
DELETE FROM contexts c
WHERE c.id IN (
    SELECT id FROM contexts o
    WHERE o.id < $1 AND NOT EXISTS (SELECT FROM results r WHERE r.context_id = o.id)
    ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

FORGET_KEYS = f"DELETE FROM idempotency_keys WHERE created_at < now() - interval '{IDEMPOTENCY_HOURS} hours'"

# Results nobody runs whose time is over or whose cancel was asked for: settled without an engine.
SWEEP = f"""
WITH expired AS MATERIALIZED (
    SELECT id FROM results
    WHERE status = 'pending' AND expires_at IS NOT NULL AND expires_at <= now()
      AND (attempt_token IS NULL OR available_at <= now())
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
), cancelled AS MATERIALIZED (
    SELECT id FROM results
    WHERE status = 'pending' AND cancel_requested_at IS NOT NULL
      AND (attempt_token IS NULL OR available_at <= now())
    ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
), due AS (
    SELECT id FROM expired UNION SELECT id FROM cancelled
), swept AS (
    UPDATE results r SET
        status = 'failed',
        completed_at = now(),
        attempt_token = NULL,
        attempt_started_at = NULL,
        error_code = CASE WHEN r.cancel_requested_at IS NULL THEN '{EXPIRED}' ELSE '{CANCELLED}' END,
        error_message = CASE WHEN r.cancel_requested_at IS NULL THEN '{EXPIRED_MESSAGE}'
                             ELSE '{CANCELLED_MESSAGE}' END
    FROM due WHERE r.id = due.id
    RETURNING r.id, r.attempt_count AS number, old.attempt_token AS token, old.dispatcher AS dispatcher,
              old.server AS server, old.attempt_started_at AS attempt_started_at
), recorded AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message)
    SELECT id, number, dispatcher, server, attempt_started_at, now(), 'lease_lost', 'dispatcher_lost',
           'The dispatcher stopped renewing its lease; the attempt counts as lost.'
    FROM swept WHERE token IS NOT NULL
), woken AS (
    SELECT pg_notify('{SETTLED_CHANNEL}', string_agg(id::text, ',')) FROM swept HAVING count(*) > 0
)
SELECT id, (SELECT count(*) FROM woken) FROM swept
"""


class QueueStore:
    """The queue's statements; every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_context(
        self,
        id_: UUID,
        content: str,
        metadata: dict[str, Any] | None,
        created_at: datetime,
        idempotency: Idempotency | None,
    ) -> bool:
        """Stores a prompt; False when its Idempotency-Key is in use."""
        key, fingerprint = (idempotency.key, idempotency.fingerprint) if idempotency else (None, None)
        document = None if metadata is None else to_json(metadata).decode()
        async with self._database.hot() as connection:
            stored = await connection.fetchval(CREATE_CONTEXT, id_, content, document, created_at, key, fingerprint)
        return stored is not None

    async def key_in_use(self, key: str) -> tuple[bytes, UUID] | None:
        """What an Idempotency-Key was used for: the digest of the request and the id it made."""
        async with self._database.hot() as connection:
            row = await connection.fetchrow(KEY_IN_USE, key)
        return None if row is None else (row["fingerprint"], row["resource_id"])

    async def submit(self, submissions: Sequence[Submission]) -> set[UUID]:
        """Stores tickets in one transaction; returns the ids stored.

        Left out are tickets whose context does not exist, and those whose Idempotency-Key is in use. No two of one
        call may bring the same key.
        """
        columns = _columns(
            submissions,
            lambda s: (
                s.id,
                s.context_id,
                s.model,
                to_json(s.parameters).decode(),
                s.priority,
                s.rank,
                s.created_at,
                s.expires_at,
                s.client_reference,
                s.retry_of,
                s.idempotency.key if s.idempotency else None,
                s.idempotency.fingerprint if s.idempotency else None,
            ),
        )
        async with self._database.hot() as connection:
            return {row[0] for row in await connection.fetch(SUBMIT, *columns)}

    async def claim(
        self,
        slots: Sequence[tuple[str, str]],
        *,
        lease_seconds: float,
        dispatcher: str,
        holding: Sequence[UUID] = (),
    ) -> list[Claim]:
        """Claims a result for each slot (model, server) while there are any, the most urgent first.

        `holding` are the tokens of claims the caller still works on: those it keeps, even if their leases ran out
        while Postgres was away.
        """
        if not slots:
            return []
        models, servers = _columns(slots, lambda slot: slot)
        async with self._database.hot() as connection:
            rows = await connection.fetch(CLAIM, models, servers, lease_seconds, dispatcher, list(holding))
        return [_claim(row) for row in rows]

    async def renew(self, held: Sequence[tuple[UUID, UUID, str | None]], *, lease_seconds: float) -> dict[UUID, Held]:
        """Renews the leases of (id, token, server) in one statement, by token; one that is missing is lost."""
        async with self._database.hot() as connection:
            rows = await connection.fetch(RENEW, *_columns(held, lambda claim: claim), lease_seconds)
        return {row["token"]: Held(row["cancel_requested"], row["expired"]) for row in rows}

    async def settle(self, settlements: Sequence[Settlement]) -> set[UUID]:
        """Writes final states; returns the ids that were still claimed under their token."""
        columns = _columns(settlements, _settlement_row)
        async with self._database.hot() as connection:
            return {row[0] for row in await connection.fetch(SETTLE, *columns)}

    async def release(self, releases: Sequence[Release]) -> set[UUID]:
        """Puts claimed results back; returns the ids that were still claimed under their token."""
        columns = _columns(
            releases,
            lambda r: (
                r.id,
                r.token,
                r.outcome.value,
                r.server,
                r.delay,
                r.attempt_spent,
                r.error_code,
                r.error_message,
            ),
        )
        async with self._database.hot() as connection:
            return {row[0] for row in await connection.fetch(RELEASE, *columns)}

    async def cancel(self, id_: UUID) -> None:
        """Asks for a cancel; a final result stays as it is."""
        async with self._database.hot() as connection:
            await connection.execute(CANCEL, id_)

    async def position(self, model: str, rank: datetime, id_: UUID) -> int:
        """The place in the queue of a model, 1 being next; exact up to POSITION_LIMIT, which one more stands beyond."""
        async with self._database.hot() as connection:
            return int(await connection.fetchval(POSITION, model, rank, id_))

    async def cancelling(self) -> list[UUID]:
        """Pending results whose cancel was asked for, whoever runs them."""
        async with self._database.hot() as connection:
            return [row[0] for row in await connection.fetch(CANCELLING)]

    async def sweep(self, limit: int = IDS_PER_NOTIFY // 2) -> int:
        """Settles expired and cancelled results that nobody runs; returns how many."""
        async with self._database.hot() as connection:
            return len(await connection.fetch(SWEEP, limit))

    async def remove(self, older_than: UUID, seconds: float, limit: int) -> int:
        """Removes final results made before the id `older_than` and ended `seconds` ago; returns how many."""
        async with self._database.hot() as connection:
            return len(await connection.fetch(REMOVE, older_than, seconds, limit))

    async def remove_contexts(self, older_than: UUID, limit: int) -> int:
        """Removes contexts made before the id `older_than` that have no results; returns how many."""
        async with self._database.hot() as connection:
            done: str = await connection.execute(REMOVE_CONTEXTS, older_than, limit)
        return int(done.split()[-1])

    async def forget_keys(self) -> None:
        """Removes Idempotency-Keys that ran out."""
        async with self._database.hot() as connection:
            await connection.execute(FORGET_KEYS)


def _columns(rows: Sequence[Any], fields: Any) -> list[list[Any]]:
    return [list(column) for column in zip(*map(fields, rows), strict=True)]


def _claim(row: Any) -> Claim:
    code = row["error_code"]
    return Claim(
        id=row["id"],
        token=row["attempt_token"],
        model=row["model"],
        server=row["server"],
        prompt=row["content"],
        parameters=row["parameters"],
        attempt=row["attempt_count"],
        expires_in=row["expires_in"],
        cancel_requested=row["cancel_requested"],
        last_error=None if code is None else (code, row["error_message"]),
    )


def _settlement_row(settlement: Settlement) -> tuple[Any, ...]:
    made = settlement.generated
    # Postgres text has no NUL; an engine may well emit one.
    texts = [text.replace("\x00", "\ufffd") for text in made.texts]
    outputs = None
    if len(texts) > 1 or any(made.logprobs):
        outputs = [
            {
                "index": index,
                "text": text,
                "finish_reason": _at(made.finish_reasons, index),
                "cumulative_logprob": _at(made.cumulative_logprobs, index),
                "logprobs": _at(made.logprobs, index),
            }
            for index, text in enumerate(texts)
        ]
    return (
        settlement.id,
        settlement.token,
        settlement.status.value,
        settlement.outcome.value,
        settlement.server,
        texts[0] if texts else None,
        None if outputs is None else to_json(outputs, inf_nan_mode="null").decode(),
        _at(made.finish_reasons, 0),
        made.prompt_tokens,
        made.completion_tokens,
        settlement.error_code,
        settlement.error_message,
        settlement.attempt_spent,
        settlement.engine_stopped,
    )


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None
