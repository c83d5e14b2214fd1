"""Makes results final that nobody runs, because a cancel was asked for or their time is over."""

from app.queue.audit import Action, recorded
from app.queue.statements.channels import CANCEL_CHANNEL, SETTLED_CHANNEL
from app.queue.statements.parts import ENDED, LOST_LEASE, OLD_CLAIM, WEBHOOK_WANTED, WEBHOOKS, count_usage
from app.queue.ticket import CANCELLED, CANCELLED_MESSAGE, EXPIRED, EXPIRED_MESSAGE


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
    FROM asked WHERE status = 'failed' GROUP BY owner_id, key_id, model, error_code
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

# Those whose cancel nobody asked for yet; what is just being claimed or settled is left for another time.
CANCEL_MANY = cancel_where(
    """id = ANY (ARRAY(
        SELECT p.id FROM results p
        WHERE p.id = ANY ($1::uuid[]) AND p.owner_id = $2 AND p.status = 'pending' AND p.cancel_requested_at IS NULL
        FOR UPDATE SKIP LOCKED
    ))""",
    recorded(Action.RESULT_CANCELLED, "asked", "$3", "$4"),
)
NOT_ASKED = """
SELECT id FROM results
WHERE id = ANY ($1::uuid[]) AND owner_id = $2 AND status = 'pending' AND cancel_requested_at IS NULL
"""

CANCELLING = "SELECT id FROM results WHERE status = 'pending' AND cancel_requested_at IS NOT NULL"

# Whether there may be something to sweep: that costs little, while Postgres takes longer to start SWEEP than to run it.
ABANDONED = """
SELECT EXISTS (SELECT FROM results WHERE status = 'pending' AND expires_at IS NOT NULL AND expires_at <= now())
    OR EXISTS (SELECT FROM results WHERE status = 'pending' AND cancel_requested_at IS NOT NULL)
"""
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
    FROM swept GROUP BY owner_id, key_id, model, error_code
), announced AS (
    {WEBHOOKS}
    FROM swept WHERE {WEBHOOK_WANTED}
), woken AS (
    SELECT pg_notify('{SETTLED_CHANNEL}', string_agg(id::text, ',')) FROM swept HAVING count(*) > 0
)
SELECT id, model, status, error_code, seconds, (SELECT count(*) FROM woken) FROM swept
"""
