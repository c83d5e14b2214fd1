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


def count_usage(
    prompt: str = "0",
    completion: str = "0",
    gpu_seconds: str = "0",
    cost: str = "NULL::float8",
    host: str = "NULL::uuid",
) -> str:
    """Appends to the usage table, in the statement that settles, so that each ticket counts once."""
    return f"""INSERT INTO usage (day, owner_id, key_id, model, host_id, requests, failures, prompt_tokens,
                       completion_tokens, gpu_seconds, cost, minute, error_code)
    SELECT (now() AT TIME ZONE 'UTC')::date, owner_id, key_id, model, {host}, count(*),
           count(*) FILTER (WHERE status = 'failed'), coalesce(sum({prompt}), 0), coalesce(sum({completion}), 0),
           coalesce(sum({gpu_seconds}), 0), sum({cost}), date_trunc('minute', now()), error_code"""


# Dollars of a result: those of the runs before, and of this one.
COST_SO_FAR = "CASE WHEN g.cost IS NULL THEN r.cost ELSE coalesce(r.cost, 0) + g.cost END"

_TODAY = "date_trunc('day', now() AT TIME ZONE 'UTC')"
_STARTED = "attempt_started_at AT TIME ZONE 'UTC'"
_RAN = f"nullif(extract(epoch FROM now() AT TIME ZONE 'UTC' - {_STARTED}), 0)"
# The part of a run on a rented host that belongs to this day: hosts are charged by the second, so what ran across
# midnight belongs to both days. Elsewhere the day of the end has it all.
TODAY_PART = f"""CASE WHEN host_id IS NULL OR {_STARTED} >= {_TODAY} THEN 1
    ELSE extract(epoch FROM now() AT TIME ZONE 'UTC' - {_TODAY}) / {_RAN} END"""


def count_earlier_days(source: str) -> str:
    """Appends to the usage table what runs on rented hosts had of the days before this one."""
    return f"""INSERT INTO usage (day, owner_id, key_id, model, host_id, requests, failures, prompt_tokens,
                       completion_tokens, gpu_seconds, cost)
    SELECT day, owner_id, key_id, model, host_id, 0, 0, 0, 0, sum(gpu_seconds * part), sum(cost * part)
    FROM {source}, LATERAL (
        SELECT began::date AS day,
               extract(epoch FROM began + interval '1 day' - greatest(began, {_STARTED})) / {_RAN} AS part
        FROM generate_series(date_trunc('day', {_STARTED}), {_TODAY} - interval '1 day', interval '1 day') began
    ) earlier
    WHERE host_id IS NOT NULL AND {_STARTED} < {_TODAY} AND gpu_seconds > 0
    GROUP BY day, owner_id, key_id, model, host_id"""


# How a claim is found: by id, whatever the planner believes. A plan is kept for minutes, and one made while the table
# was almost empty may find the row among all pending ones; an array of one and the IS TRUE leave it no way but that of
# the key.
HELD = """r.id = ANY (ARRAY[g.id]) AND r.attempt_token = g.token AND (r.status = 'pending') IS TRUE"""
