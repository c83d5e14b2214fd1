"""Makes results final that their claimer has run."""

from app.queue.columns import SETTLED, unnested
from app.queue.statements.channels import SETTLED_CHANNEL
from app.queue.statements.parts import (
    COST_SO_FAR,
    ENDED,
    HELD,
    TODAY_PART,
    WEBHOOK_WANTED,
    WEBHOOKS,
    count_earlier_days,
    count_usage,
)

_SETTLEMENT = [
    *(("id", "uuid"), ("token", "uuid"), ("status", "text"), ("outcome", "text"), ("server", "text")),
    *(("error_code", "text"), ("error_message", "text"), ("spent", "bool"), ("engine_stopped", "bool")),
    *(("gpu_seconds", "float8"), ("cost", "float8"), ("host_id", "uuid"), *SETTLED.sent),
]
_OUTPUT_FILE = [
    *(("result_id", "uuid"), ("response", "int"), ("name", "text"), ("element", "int"), ("media_type", "text")),
    ("data", "bytea"),
]


def _settle(*, files: bool, hosts: bool) -> str:
    today = f" * {TODAY_PART}" if hosts else ""
    kept = f""", kept AS (
    INSERT INTO output_files ({", ".join(name for name, _ in _OUTPUT_FILE)})
    SELECT f.* FROM {unnested(_OUTPUT_FILE, "f", after=len(_SETTLEMENT))} JOIN settled s ON s.id = f.result_id
)"""
    counted_before = f""", counted_before AS (
    {count_earlier_days("settled")}
)"""
    return f"""
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
        cost = {COST_SO_FAR},
        engine_stopped_at = CASE WHEN g.engine_stopped THEN now() END
    FROM given g
    WHERE {HELD}
    RETURNING r.id, r.attempt_count, r.dispatcher, r.server, old.attempt_started_at AS attempt_started_at,
              g.outcome, g.spent, r.error_message, r.prompt_tokens, r.completion_tokens,
              g.gpu_seconds, g.cost, g.host_id, r.provenance, {ENDED}
){kept if files else ""}, recorded AS (
    INSERT INTO attempts (result_id, number, dispatcher, server, started_at, ended_at, outcome, error_code,
                          error_message, prompt_tokens, completion_tokens, gpu_seconds, cost, provenance)
    SELECT id, attempt_count, dispatcher, server, attempt_started_at, now(), outcome, error_code, error_message,
           prompt_tokens, completion_tokens, gpu_seconds, cost, provenance
    FROM settled WHERE spent
), counted AS (
    {count_usage("prompt_tokens", "completion_tokens", f"gpu_seconds{today}", f"cost{today}", host="host_id")}
    FROM settled GROUP BY owner_id, key_id, model, host_id, error_code
){counted_before if hosts else ""}, announced AS (
    {WEBHOOKS}
    FROM settled WHERE {WEBHOOK_WANTED}
), woken AS (
    SELECT pg_notify('{SETTLED_CHANNEL}', string_agg(id::text, ',')) FROM settled HAVING count(*) > 0
)
SELECT id, model, status, error_code, prompt_tokens, completion_tokens, gpu_seconds, cost, seconds,
       (SELECT count(*) FROM woken)
FROM settled
"""


# By whether a result has files, and whether one ran on a rented host. Postgres starts each part of a statement, also
# one that then has nothing to do.
SETTLE = {(files, hosts): _settle(files=files, hosts=hosts) for files in (False, True) for hosts in (False, True)}
