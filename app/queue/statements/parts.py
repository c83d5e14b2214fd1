"""What several statements have in common."""

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


# How a claim is found: by id, whatever the planner believes. A plan is kept for minutes, and one made while the table
# was almost empty may find the row among all pending ones; the array and the IS TRUE leave it no way but the key's.
HELD = """r.id = g.id AND r.id = ANY ($1::uuid[]) AND r.attempt_token = g.token
      AND (r.status = 'pending') IS TRUE"""
