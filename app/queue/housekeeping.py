"""SQL of what is done now and then: removing what is old, adding up what was counted."""

from app.queue import locks
from app.queue.statements.keys import IDEMPOTENCY_HOURS

MINUTES_KEPT_DAYS = 3

# What the retention takes, oldest first; the id bounds the scan. One dispatcher at a time is enough. Of a batch, what
# is not in its files yet stays.
REMOVE = f"""
WITH mine AS (
    SELECT pg_try_advisory_xact_lock({locks.RETENTION}) AS held
), old AS MATERIALIZED (
    SELECT id, context_id FROM results, mine
    WHERE held AND id < $1 AND status <> 'pending' AND completed_at < now() - make_interval(secs => $2)
      AND (batch_id IS NULL OR NOT EXISTS (SELECT FROM batches b WHERE b.id = batch_id AND b.lease_until IS NOT NULL))
    ORDER BY id LIMIT $3 FOR UPDATE OF results SKIP LOCKED
), removed AS (
    DELETE FROM results r USING old WHERE r.id = old.id RETURNING r.id
)
SELECT context_id FROM old, (SELECT count(*) FROM removed) counted
"""

# A context without results goes by its own age. They are looked at in the order of their ids, a few at a time: any
# number of old ones may be in use. A ticket may be stored for one after the statement that locks it began: only one
# that begins once it is locked, when no further ticket can come, sees every result.
_UNUSED = "NOT EXISTS (SELECT FROM results r WHERE r.context_id = c.id)"
LOCK_UNUSED_CONTEXTS = f"""
WITH looked AS MATERIALIZED (
    SELECT id FROM contexts WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3
), unused AS (
    SELECT c.id FROM contexts c WHERE c.id = ANY (ARRAY(SELECT id FROM looked)) AND {_UNUSED} FOR UPDATE SKIP LOCKED
)
SELECT ARRAY(SELECT id FROM looked ORDER BY id) AS looked, ARRAY(SELECT id FROM unused) AS unused
"""
REMOVE_CONTEXTS = f"DELETE FROM contexts c WHERE c.id = ANY ($1::uuid[]) AND {_UNUSED}"

# Those that were not used for $1 seconds.
REMOVE_CHATS = """
DELETE FROM chats WHERE id IN (
    SELECT id FROM chats WHERE used_at < now() - make_interval(secs => $1) ORDER BY used_at LIMIT $2
)
RETURNING id
"""

# Those of which no result is left.
REMOVE_COMPARISONS = """
DELETE FROM comparisons WHERE id IN (
    SELECT c.id FROM comparisons c
    WHERE c.id < $1 AND NOT EXISTS (SELECT FROM results r WHERE r.id = ANY (c.result_ids))
    ORDER BY c.id LIMIT $2
)
RETURNING id
"""

FORGET_KEYS = f"DELETE FROM idempotency_keys WHERE created_at < now() - interval '{IDEMPOTENCY_HOURS} hours'"

# Settling appends; this makes one row of all those of a day that belong together, and adds to the counts of the minutes
# in which they ended. A row is deleted once, whoever else compacts at the same time, and what a row counted is in the
# sums that replace it. One that is committed late is summed by the next pass.
COMPACT_USAGE = f"""
WITH mine AS (
    SELECT pg_try_advisory_xact_lock({locks.USAGE}) AS held
), scattered AS MATERIALIZED (
    SELECT day, owner_id, key_id, model, host_id FROM usage, mine
    WHERE held AND day >= (now() AT TIME ZONE 'UTC')::date - 7
    GROUP BY day, owner_id, key_id, model, host_id HAVING count(*) > 1 OR count(minute) > 0
), removed AS (
    DELETE FROM usage u USING scattered s
    WHERE (u.day, u.owner_id, u.model) = (s.day, s.owner_id, s.model) AND u.key_id IS NOT DISTINCT FROM s.key_id
      AND u.host_id IS NOT DISTINCT FROM s.host_id
    RETURNING u.*
), minutes AS (
    INSERT INTO minute_counts AS m (owner_id, minute, model, error_code, tickets, prompt_tokens, completion_tokens)
    SELECT owner_id, minute, model, coalesce(error_code, ''), sum(requests), sum(prompt_tokens), sum(completion_tokens)
    FROM removed WHERE minute IS NOT NULL GROUP BY owner_id, minute, model, coalesce(error_code, '')
    ON CONFLICT (owner_id, minute, model, error_code) DO UPDATE SET
        tickets = m.tickets + excluded.tickets, prompt_tokens = m.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = m.completion_tokens + excluded.completion_tokens
)
INSERT INTO usage (day, owner_id, key_id, model, host_id, requests, failures, prompt_tokens, completion_tokens,
                   gpu_seconds, cost)
SELECT day, owner_id, key_id, model, host_id, sum(requests), sum(failures), sum(prompt_tokens), sum(completion_tokens),
       sum(gpu_seconds), sum(cost)
FROM removed GROUP BY day, owner_id, key_id, model, host_id
"""

FORGET_MINUTES = f"DELETE FROM minute_counts WHERE minute < now() - interval '{MINUTES_KEPT_DAYS} days'"

FORGET_REQUESTS = "DELETE FROM request_counts WHERE second < extract(epoch FROM now()) - 120"
