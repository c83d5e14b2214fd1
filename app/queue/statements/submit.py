"""Stores contexts and tickets, of many requests at once."""

from app.db.tables.owners import NOBODY
from app.queue.columns import PROMPT, SUBMITTED, unnested
from app.queue.statements.channels import QUEUED_CHANNEL
from app.queue.statements.keys import TAKE_OVER_OLD_KEY

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

# A ticket comes for a stored context of its owner, or `with_prompt`: then its context is stored with it.
_NEW_TICKET = [*SUBMITTED.sent, *_KEYED, ("with_prompt", "bool"), *PROMPT.sent]


def _submit(before: str = "", beside: str = "") -> str:
    return f"""
WITH {before}given AS (
    SELECT g.* FROM {unnested(_NEW_TICKET, "g")}{beside}
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
    SELECT context_id, CASE WHEN kept THEN owner_id ELSE {NOBODY} END, created_at, {PROMPT.stored}
    FROM accepted WHERE with_prompt
), stored AS (
    INSERT INTO results ({SUBMITTED})
    SELECT {SUBMITTED.stored}
    FROM accepted
    RETURNING id, model
), woken AS (
    -- One of the same payload is sent once.
    SELECT pg_notify('{QUEUED_CHANNEL}', model) FROM stored
)
SELECT id, (SELECT count(*) FROM woken) FROM stored
"""


SUBMIT = _submit()
# The same without waiting for the disk, so that dispatchers begin meanwhile, and because commits that notify go one by
# one. FLUSH comes before anybody is told that a ticket is stored: its own commit takes all that were before it along.
SUBMIT_UNFLUSHED = _submit(
    "unflushed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)), ", ", unflushed"
)
FLUSH = "SELECT pg_logical_emit_message(true, 'tickets', '')"
