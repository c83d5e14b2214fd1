"""All SQL of the queue. The results table is the queue; every statement here is one round trip.

A claim is a row whose `attempt_token` is set and whose `available_at` is the end of its lease. Renew, settle and
release name the token, so a dispatcher that lost its lease changes no row.
"""

from app.queue.ticket import CANCELLED, CANCELLED_MESSAGE, EXPIRED, EXPIRED_MESSAGE

QUEUED_CHANNEL = "results_queued"
SETTLED_CHANNEL = "results_settled"
CANCEL_CHANNEL = "results_cancel"

# NOTIFY carries less than 8,000 bytes; an id and its comma are 37.
IDS_PER_NOTIFY = 200

# What a statement that ends or takes over a claim returns of it, and the ledger's row where its lease had run out.
OLD_CLAIM = """old.attempt_token AS lost_token, old.dispatcher AS lost_dispatcher, old.server AS lost_server,
        old.attempt_started_at AS lost_started_at"""
LOST_LEASE = """INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message)
    SELECT id, lost_number, lost_dispatcher, lost_server, lost_started_at, now(), 'lease_lost', 'dispatcher_lost',
           'The dispatcher stopped renewing its lease; the attempt counts as lost.'"""

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
CLAIM = f"""
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
        {OLD_CLAIM}, old.attempt_count AS lost_number
), recorded AS (
    {LOST_LEASE}
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
    RETURNING id, status, {OLD_CLAIM}, old.attempt_count AS lost_number
), recorded AS (
    {LOST_LEASE}
    FROM asked WHERE status = 'failed' AND lost_token IS NOT NULL
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
    RETURNING r.id, {OLD_CLAIM}, old.attempt_count AS lost_number
), recorded AS (
    {LOST_LEASE}
    FROM swept WHERE lost_token IS NOT NULL
), woken AS (
    SELECT pg_notify('{SETTLED_CHANNEL}', string_agg(id::text, ',')) FROM swept HAVING count(*) > 0
)
SELECT id, (SELECT count(*) FROM woken) FROM swept
"""
