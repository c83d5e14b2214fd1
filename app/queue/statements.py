"""All SQL of the queue. The results table is the queue; every statement here is one round trip.

A claim is a row whose `attempt_token` is set and whose `available_at` is the end of its lease. Renew, settle and
release name the token, so a dispatcher that lost its lease changes no row.
"""

from app.queue.audit import Action, recorded
from app.queue.columns import ASKED, CLAIMED, PROMPT, SETTLED, SUBMITTED, unnested
from app.queue.ticket import CANCELLED, CANCELLED_MESSAGE, EXPIRED, EXPIRED_MESSAGE
from app.tasks.generate import LOGPROB_BYTES, TEXT_BYTES

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

# What a statement that makes results final returns of them, for the two inserts below and for the metrics.
ENDED = """r.owner_id, r.key_id, r.model, r.status, r.webhook, r.error_code,
        extract(epoch FROM now() - r.created_at)::float8 AS seconds"""
WEBHOOKS = """INSERT INTO webhook_deliveries (owner_id, result_id, event, url)
    SELECT owner_id, id, 'result.' || status, webhook->>'url'"""
WEBHOOK_WANTED = "webhook IS NOT NULL AND webhook->'events' ? ('result.' || status)"


def count_usage(prompt: str = "0", completion: str = "0", gpu_seconds: str = "0", cost: str = "NULL::float8") -> str:
    """Appends to the usage table, in the statement that settles, so that each ticket counts once."""
    return f"""INSERT INTO usage (day, owner_id, key_id, model, requests, failures, prompt_tokens, completion_tokens,
                       gpu_seconds, cost)
    SELECT (now() AT TIME ZONE 'UTC')::date, owner_id, key_id, model, count(*),
           count(*) FILTER (WHERE status = 'failed'), coalesce(sum({prompt}), 0), coalesce(sum({completion}), 0),
           coalesce(sum({gpu_seconds}), 0), sum({cost})"""


IDEMPOTENCY_HOURS = 24

# A key that is in use conflicts, also while the request that brought it is still under way; an old one is free again.
TAKE_OVER_OLD_KEY = f"""ON CONFLICT (owner_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id, created_at = now()
    WHERE k.created_at < now() - interval '{IDEMPOTENCY_HOURS} hours'"""

_KEYED = [("key", "text"), ("fingerprint", "bytea")]
_NEW_CONTEXT = [("id", "uuid"), ("owner_id", "int"), ("created_at", "timestamptz"), *_KEYED, *PROMPT.sent]
CREATE_CONTEXT = f"""
WITH given AS (
    SELECT * FROM {unnested(_NEW_CONTEXT, "g")}
), keyed AS (
    INSERT INTO idempotency_keys AS k (owner_id, key, fingerprint, resource_id)
    SELECT owner_id, key, fingerprint, id FROM given WHERE key IS NOT NULL
    {TAKE_OVER_OLD_KEY}
    RETURNING resource_id
)
INSERT INTO contexts (id, owner_id, created_at, {PROMPT})
SELECT id, owner_id, created_at, {PROMPT.stored} FROM given WHERE key IS NULL OR EXISTS (SELECT FROM keyed)
RETURNING id
"""

TAKE_KEY = f"""
INSERT INTO idempotency_keys AS k (owner_id, key, fingerprint, resource_id) VALUES ($1, $2, $3, $4)
{TAKE_OVER_OLD_KEY}
RETURNING resource_id
"""

KEY_IN_USE = f"""
SELECT fingerprint, resource_id FROM idempotency_keys
WHERE owner_id = $1 AND key = $2 AND created_at >= now() - interval '{IDEMPOTENCY_HOURS} hours'
"""

# A ticket comes for a stored context of its owner, or `with_prompt`: then its context is stored with it.
_NEW_TICKET = [*SUBMITTED.sent, *_KEYED, ("with_prompt", "bool"), *PROMPT.sent]
SUBMIT = f"""
WITH given AS (
    SELECT * FROM {unnested(_NEW_TICKET, "g")}
), for_stored AS (
    -- A context that is being deleted is waited for: then it is there and stays, or is not there.
    SELECT g.* FROM given g JOIN contexts c ON c.id = g.context_id AND c.owner_id = g.owner_id
    -- Tensors are asked for as such only, and where the sender has checked them.
    WHERE NOT g.with_prompt AND (g.task = 'infer') = (c.inputs IS NOT NULL) FOR KEY SHARE OF c
), possible AS (
    SELECT g.* FROM given g WHERE g.with_prompt
    UNION ALL
    SELECT * FROM for_stored
), keyed AS (
    INSERT INTO idempotency_keys AS k (owner_id, key, fingerprint, resource_id)
    SELECT owner_id, key, fingerprint, id FROM possible WHERE key IS NOT NULL
    {TAKE_OVER_OLD_KEY}
    RETURNING resource_id
), accepted AS (
    SELECT * FROM possible p WHERE key IS NULL OR EXISTS (SELECT FROM keyed WHERE resource_id = p.id)
), worded AS (
    INSERT INTO contexts (id, owner_id, created_at, {PROMPT})
    SELECT context_id, owner_id, created_at, {PROMPT.stored} FROM accepted WHERE with_prompt
), stored AS (
    INSERT INTO results ({SUBMITTED})
    SELECT {SUBMITTED.stored}
    FROM accepted
    RETURNING id
), woken AS (
    SELECT pg_notify('{QUEUED_CHANNEL}', '') WHERE EXISTS (SELECT FROM stored)
)
SELECT id, (SELECT count(*) FROM woken) FROM stored
"""

# Owners take turns: each gets its weight's share of the slots, counting what runs already ($6 to $8), and within an
# owner the order is by rank. `shares` says how many of each owner are due, so that no more rows are locked than are
# claimed; where another dispatcher was quicker, `seen` is more than what is returned, and it is worth asking again.
# No more is claimed than comes to $9 bytes, prompts and what their answers may come to; the first is, whatever it is.
# A claim need not wait for the disk: one that a crash of Postgres forgets leaves the result queued, and its token void.
# An expired lease is claimable again; the attempt it belonged to goes into the ledger in the same statement.
CLAIMABLE = """r.status = 'pending' AND r.available_at <= now()
          AND (r.attempt_token IS NULL OR r.attempt_token <> ALL ($5::uuid[]))"""
# As `largest_answer` of the parameters.
LARGEST_ANSWER = f"""(coalesce((r.parameters->>'n')::bigint, 1) * coalesce((r.parameters->>'max_tokens')::bigint, 0)
    * ({TEXT_BYTES} + coalesce((r.parameters->>'logprobs')::bigint + 1, 0) * {LOGPROB_BYTES}))"""
# A slot of a server is a row that is locked while it is taken, so two dispatchers never take the same one, and neither
# waits for the other; $10 is how many a model has there, null for any number. Those of runs that have ended ($11) are
# free for who ran them. See slots.py.
FREE_SLOT = """(x.until <= now() AND (x.token IS NULL OR x.token <> ALL ($5::uuid[])) OR x.token = ANY ($11::uuid[]))"""
CLAIM = f"""
WITH RECURSIVE unflushed AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), offered AS (
    SELECT model, server, most, place, row_number() OVER (PARTITION BY model, server ORDER BY place) AS nth
    FROM unnest($1::text[], $2::text[], $10::int[]) WITH ORDINALITY AS s(model, server, most, place), unflushed
), free AS (
    SELECT l.model, l.server, count(*) AS n
    FROM (SELECT DISTINCT model, server, most FROM offered) l
    JOIN server_slots x ON x.server = l.server AND x.model = l.model AND x.number < l.most
    WHERE {FREE_SLOT} GROUP BY l.model, l.server
), slots AS (
    SELECT o.model, o.server, o.most, row_number() OVER (PARTITION BY o.model ORDER BY o.place) AS number
    FROM offered o LEFT JOIN free f USING (model, server) WHERE o.most IS NULL OR o.nth <= f.n
), wanted AS (
    SELECT model, count(*) AS n FROM slots GROUP BY model
), waiting (model, n, owner_id) AS (
    SELECT w.model, w.n, (
        SELECT r.owner_id FROM results r
        WHERE r.status = 'pending' AND r.model = w.model
        -- The order of the index results_claim, so that no other one is thought as good.
        ORDER BY r.owner_id, r.rank, r.id LIMIT 1
    ) FROM wanted w
    UNION ALL
    SELECT w.model, w.n, (
        SELECT r.owner_id FROM results r
        WHERE r.status = 'pending' AND r.model = w.model AND r.owner_id > w.owner_id
        ORDER BY r.owner_id, r.rank, r.id LIMIT 1
    ) FROM waiting w WHERE w.owner_id IS NOT NULL
), turns AS (
    SELECT w.model, w.n, w.owner_id, coalesce(b.running, 0) AS running, coalesce(o.weight, 1) AS weight,
           count(*) OVER (PARTITION BY w.model) AS owners
    FROM waiting w
    LEFT JOIN unnest($6::text[], $7::int[], $8::int[]) AS b(model, owner_id, running) USING (model, owner_id)
    LEFT JOIN owners o ON o.id = w.owner_id
    WHERE w.owner_id IS NOT NULL
), shares AS (
    SELECT model, owner_id, n, NULL::bigint AS seen FROM turns WHERE owners = 1
    UNION ALL
    SELECT model, owner_id, count(*), count(*) FROM (
        SELECT t.model, t.owner_id, t.n, row_number() OVER (
            PARTITION BY t.model ORDER BY (t.running + p.place)::float8 / t.weight, p.rank, t.owner_id
        ) AS number
        FROM turns t CROSS JOIN LATERAL (
            SELECT f.rank, row_number() OVER (ORDER BY f.rank, f.id) AS place FROM (
                SELECT r.rank, r.id FROM results r
                WHERE r.model = t.model AND r.owner_id = t.owner_id AND {CLAIMABLE}
                ORDER BY r.rank, r.id
                LIMIT t.n
            ) f
        ) p
        WHERE t.owners > 1
    ) soonest WHERE number <= n GROUP BY model, owner_id
), due AS MATERIALIZED (
    SELECT p.id, s.model, p.rank, p.context_id, p.stored_bytes, p.answer_bytes
    FROM shares s CROSS JOIN LATERAL (
        SELECT r.id, r.rank, r.context_id, pg_column_size(r.parameters) + coalesce(pg_column_size(r.request), 0)
                   AS stored_bytes,
               {LARGEST_ANSWER} AS answer_bytes
        FROM results r
        WHERE r.model = s.model AND r.owner_id = s.owner_id AND {CLAIMABLE}
        ORDER BY r.rank, r.id
        LIMIT s.n
        FOR UPDATE SKIP LOCKED
    ) p
), sized AS (
    -- Known without reading them: the length of a text, and that of a document which is stored as it is (EXTERNAL).
    SELECT d.id, d.model, d.rank, d.answer_bytes, d.stored_bytes + (
        SELECT coalesce(octet_length(c.content), 0) + coalesce(pg_column_size(c.messages), 0)
               + coalesce(pg_column_size(c.inputs), 0)
        FROM contexts c WHERE c.id = d.context_id
    ) AS prompt_bytes
    FROM due d
), picked AS MATERIALIZED (
    SELECT id, model, prompt_bytes, answer_bytes, row_number() OVER (PARTITION BY model ORDER BY rank, id) AS number,
           row_number() OVER ranked = 1 OR sum(prompt_bytes + answer_bytes) OVER ranked <= $9 AS fits
    FROM sized WINDOW ranked AS (ORDER BY rank, id)
), placed AS (
    SELECT p.id, p.prompt_bytes, p.answer_bytes, model, s.server, s.most,
           row_number() OVER (PARTITION BY model, s.server ORDER BY number) AS nth
    FROM picked p JOIN slots s USING (model, number) WHERE fits
), taken AS MATERIALIZED (
    SELECT l.model, l.server, ARRAY(
        SELECT x.number FROM server_slots x
        WHERE x.server = l.server AND x.model = l.model AND x.number < l.most AND {FREE_SLOT}
        ORDER BY x.number LIMIT l.n
        FOR UPDATE SKIP LOCKED
    ) AS numbers
    FROM (SELECT model, server, most, count(*) AS n FROM placed WHERE most IS NOT NULL GROUP BY model, server, most) l
), started AS MATERIALIZED (
    SELECT p.id, p.prompt_bytes, p.answer_bytes, server, t.numbers[p.nth] AS slot
    FROM placed p LEFT JOIN taken t USING (model, server)
    WHERE p.most IS NULL OR t.numbers[p.nth] IS NOT NULL
), claimed AS (
    UPDATE results r SET
        attempt_count = r.attempt_count + 1,
        attempt_token = gen_random_uuid(),
        attempt_started_at = now(),
        started_at = coalesce(r.started_at, now()),
        available_at = now() + make_interval(secs => $3),
        dispatcher = $4,
        server = started.server
    FROM started
    -- Each by its key: the planner has no other way to an array of one, and a plan that is kept stays good.
    WHERE r.id = ANY (ARRAY[started.id])
    RETURNING
        {CLAIMED.of("r")}, r.rank, r.server, r.attempt_token, r.attempt_count, started.prompt_bytes,
        started.answer_bytes, started.slot,
        extract(epoch FROM r.expires_at - now())::float8 AS expires_in,
        r.cancel_requested_at IS NOT NULL AS cancel_requested,
        r.error_code, r.error_message,
        extract(epoch FROM now() - r.created_at)::float8 AS age, old.started_at IS NULL AS first_claim,
        {OLD_CLAIM}, old.attempt_count AS lost_number
), recorded AS (
    {LOST_LEASE}
    FROM claimed WHERE lost_token IS NOT NULL
), occupied AS (
    UPDATE server_slots x SET token = c.attempt_token, until = now() + make_interval(secs => $3)
    FROM claimed c WHERE x.server = c.server AND x.model = c.model AND x.number = c.slot
)
SELECT q.*, {ASKED.of("c")}, (SELECT coalesce(sum(seen), 0) FROM shares)::int AS seen,
       (SELECT count(*) FROM picked WHERE NOT fits) AS left_out,
       (SELECT count(*) FROM placed)::int AS placed, (SELECT jsonb_object_agg(model, n) FROM wanted) AS granted
FROM (VALUES (1)) AS always(one)
LEFT JOIN (claimed q JOIN contexts c ON c.id = q.context_id) ON true
ORDER BY q.rank, q.id
"""

# How a claim is found: by id, whatever the planner believes. A plan is kept for minutes, and one made while the table
# was almost empty may find the row among all pending ones; the array and the IS TRUE leave it no way but the key's.
HELD = """r.id = g.id AND r.id = ANY ($1::uuid[]) AND r.attempt_token = g.token
      AND (r.status = 'pending') IS TRUE"""

RENEW = f"""
UPDATE results r SET available_at = now() + make_interval(secs => $4), server = coalesce(g.server, r.server)
FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS g(id, token, server)
WHERE {HELD}
RETURNING r.attempt_token AS token, r.cancel_requested_at IS NOT NULL AS cancel_requested, r.streamed,
          coalesce(r.expires_at <= now(), false) AS expired
"""

_SETTLEMENT = [
    *(("id", "uuid"), ("token", "uuid"), ("status", "text"), ("outcome", "text"), ("server", "text")),
    *(("error_code", "text"), ("error_message", "text"), ("spent", "bool"), ("engine_stopped", "bool")),
    *(("gpu_seconds", "float8"), ("cost", "float8"), *SETTLED.sent),
]
_OUTPUT_FILE = [
    *(("result_id", "uuid"), ("response", "int"), ("name", "text"), ("element", "int"), ("media_type", "text")),
    ("data", "bytea"),
]
OUTPUT_FILE_COLUMNS = len(_OUTPUT_FILE)
SETTLE = f"""
WITH given AS (
    SELECT * FROM {unnested(_SETTLEMENT, "g")}
), settled AS (
    UPDATE results r SET
        status = g.status,
        completed_at = now(),
        attempt_token = NULL,
        attempt_started_at = NULL,
        attempt_count = r.attempt_count - CASE WHEN g.spent THEN 0 ELSE 1 END,
        server = coalesce(g.server, r.server),
        {SETTLED.assigned("g")},
        error_code = g.error_code,
        error_message = g.error_message,
        engine_stopped_at = CASE WHEN g.engine_stopped THEN now() END
    FROM given g
    WHERE {HELD}
    RETURNING r.id, r.attempt_count, r.dispatcher, r.server, old.attempt_started_at AS attempt_started_at,
              g.outcome, g.spent, r.error_message, r.prompt_tokens, r.completion_tokens,
              g.gpu_seconds, g.cost, {ENDED}
), kept AS (
    INSERT INTO output_files ({", ".join(name for name, _ in _OUTPUT_FILE)})
    SELECT f.* FROM {unnested(_OUTPUT_FILE, "f", after=len(_SETTLEMENT))} JOIN settled s ON s.id = f.result_id
), recorded AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message, prompt_tokens, completion_tokens, gpu_seconds, cost)
    SELECT id, attempt_count, dispatcher, server, attempt_started_at, now(), outcome, error_code, error_message,
           prompt_tokens, completion_tokens, gpu_seconds, cost
    FROM settled WHERE spent
), counted AS (
    {count_usage("prompt_tokens", "completion_tokens", "gpu_seconds", "cost")}
    FROM settled GROUP BY owner_id, key_id, model
), announced AS (
    {WEBHOOKS}
    FROM settled WHERE {WEBHOOK_WANTED}
), woken AS (
    SELECT pg_notify('{SETTLED_CHANNEL}', string_agg(id::text, ',')) FROM settled HAVING count(*) > 0
)
SELECT id, model, status, error_code, prompt_tokens, completion_tokens, gpu_seconds, cost, seconds,
       (SELECT count(*) FROM woken)
FROM settled
"""

RELEASE = f"""
WITH given AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::float8[], $6::bool[], $7::text[], $8::text[], $9::float8[],
        $10::float8[]
    ) AS g(id, token, outcome, server, delay, spent, error_code, error_message, gpu_seconds, cost)
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
    WHERE {HELD}
    RETURNING r.id, r.attempt_count, r.dispatcher, r.server, old.attempt_started_at AS attempt_started_at,
              g.outcome, g.spent, g.error_code, g.error_message, g.gpu_seconds, g.cost, r.owner_id, r.key_id, r.model
), recorded AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message, gpu_seconds, cost)
    SELECT id, attempt_count, dispatcher, server, attempt_started_at, now(), outcome, error_code, error_message,
           gpu_seconds, cost
    FROM released WHERE spent
), counted AS (
    INSERT INTO usage (day, owner_id, key_id, model, requests, failures, prompt_tokens, completion_tokens,
                       gpu_seconds, cost)
    SELECT (now() AT TIME ZONE 'UTC')::date, owner_id, key_id, model, 0, 0, 0, 0, sum(gpu_seconds), sum(cost)
    FROM released WHERE gpu_seconds > 0 GROUP BY owner_id, key_id, model
), woken AS (
    SELECT pg_notify('{QUEUED_CHANNEL}', '') WHERE EXISTS (SELECT FROM released)
)
SELECT id, model, error_code, gpu_seconds, cost, (SELECT count(*) FROM woken) FROM released
"""


# Not claimed, or claimed by a dispatcher that is gone: final at once. Else the claimer is told and settles.
def cancel_where(which: str, audited: str = "SELECT") -> str:
    return f"""
WITH asked AS (
    UPDATE results r SET
        cancel_requested_at = coalesce(cancel_requested_at, now()),
        status = CASE WHEN attempt_token IS NULL OR available_at <= now() THEN 'failed' ELSE status END,
        completed_at = CASE WHEN attempt_token IS NULL OR available_at <= now() THEN now() END,
        error_code = CASE WHEN attempt_token IS NULL OR available_at <= now() THEN '{CANCELLED}' ELSE error_code END,
        error_message = CASE WHEN attempt_token IS NULL OR available_at <= now() THEN '{CANCELLED_MESSAGE}'
                             ELSE error_message END,
        attempt_token = CASE WHEN available_at > now() THEN attempt_token END,
        attempt_started_at = CASE WHEN available_at > now() THEN attempt_started_at END
    WHERE {which} AND (status = 'pending') IS TRUE
    RETURNING id, {ENDED}, {OLD_CLAIM}, old.attempt_count AS lost_number
), recorded AS (
    {LOST_LEASE}
    FROM asked WHERE status = 'failed' AND lost_token IS NOT NULL
), counted AS (
    {count_usage()}
    FROM asked WHERE status = 'failed' GROUP BY owner_id, key_id, model
), announced AS (
    {WEBHOOKS}
    FROM asked WHERE status = 'failed' AND {WEBHOOK_WANTED}
), audited AS (
    {audited}
)
SELECT pg_notify(CASE WHEN status = 'failed' THEN '{SETTLED_CHANNEL}' ELSE '{CANCEL_CHANNEL}' END, id::text),
       model, status, error_code, seconds
FROM asked
"""


CANCEL = cancel_where("id = $1 AND owner_id = $2", recorded(Action.RESULT_CANCELLED, "asked", "$3", "$4"))

POSITION_LIMIT = 1000

# How many of the owner's own are ahead, counted no further than anyone cares to read.
POSITION = f"""
SELECT count(*) + 1 FROM (
    SELECT FROM results
    WHERE status = 'pending' AND model = $1 AND owner_id = $4 AND attempt_token IS NULL AND available_at <= now()
      AND (rank, id) < ($2, $3)
    ORDER BY rank, id LIMIT {POSITION_LIMIT}
) ahead
"""

CANCELLING = "SELECT id FROM results WHERE status = 'pending' AND cancel_requested_at IS NOT NULL"

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
    RETURNING r.id, {ENDED}, {OLD_CLAIM}, old.attempt_count AS lost_number
), recorded AS (
    {LOST_LEASE}
    FROM swept WHERE lost_token IS NOT NULL
), counted AS (
    {count_usage()}
    FROM swept GROUP BY owner_id, key_id, model
), announced AS (
    {WEBHOOKS}
    FROM swept WHERE {WEBHOOK_WANTED}
), woken AS (
    SELECT pg_notify('{SETTLED_CHANNEL}', string_agg(id::text, ',')) FROM swept HAVING count(*) > 0
)
SELECT id, model, status, error_code, seconds, (SELECT count(*) FROM woken) FROM swept
"""
