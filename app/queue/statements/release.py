"""Puts claimed results back into the queue."""

from app.queue.statements.channels import QUEUED_CHANNEL
from app.queue.statements.parts import COST_SO_FAR, HELD, TODAY_PART, count_earlier_days

RELEASE = f"""
WITH given AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::float8[], $6::bool[], $7::text[], $8::text[], $9::float8[],
        $10::float8[], $11::uuid[], $12::text[]
    ) AS g(id, token, outcome, server, delay, spent, error_code, error_message, gpu_seconds, cost, host_id, provenance)
), released AS (
    UPDATE results r SET
        available_at = now() + make_interval(secs => g.delay),
        attempt_token = NULL,
        attempt_started_at = NULL,
        attempt_count = r.attempt_count - CASE WHEN g.spent THEN 0 ELSE 1 END,
        server = coalesce(g.server, r.server),
        error_code = coalesce(g.error_code, r.error_code),
        error_message = coalesce(g.error_message, r.error_message),
        cost = {COST_SO_FAR}
    FROM given g
    WHERE {HELD}
    RETURNING r.id, r.attempt_count, r.dispatcher, r.server, old.attempt_started_at AS attempt_started_at,
              g.outcome, g.spent, g.error_code, g.error_message, g.gpu_seconds, g.cost, g.host_id, g.provenance,
              r.owner_id, r.key_id, r.model
), recorded AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message, gpu_seconds, cost, provenance)
    SELECT id, attempt_count, dispatcher, server, attempt_started_at, now(), outcome, error_code, error_message,
           gpu_seconds, cost, provenance::jsonb
    FROM released WHERE spent
), counted AS (
    INSERT INTO usage (day, owner_id, key_id, model, host_id, requests, failures, prompt_tokens, completion_tokens,
                       gpu_seconds, cost)
    SELECT (now() AT TIME ZONE 'UTC')::date, owner_id, key_id, model, host_id, 0, 0, 0, 0,
           sum(gpu_seconds * {TODAY_PART}), sum(cost * {TODAY_PART})
    FROM released WHERE gpu_seconds > 0 GROUP BY owner_id, key_id, model, host_id
), counted_before AS (
    {count_earlier_days("released")}
), woken AS (
    SELECT pg_notify('{QUEUED_CHANNEL}', '') WHERE EXISTS (SELECT FROM released)
)
SELECT id, model, error_code, gpu_seconds, cost, (SELECT count(*) FROM woken) FROM released
"""
