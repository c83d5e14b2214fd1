"""Idempotency keys: one that is in use, and one that is free again."""

IDEMPOTENCY_HOURS = 24

# A key that is in use conflicts, also while the request that brought it is still under way; an old one is free again.
TAKE_OVER_OLD_KEY = f"""ON CONFLICT (owner_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id, created_at = now()
    WHERE k.created_at < now() - interval '{IDEMPOTENCY_HOURS} hours'"""

TAKE_KEY = f"""
INSERT INTO idempotency_keys AS k (owner_id, key, fingerprint, resource_id) VALUES ($1, $2, $3, $4)
{TAKE_OVER_OLD_KEY}
RETURNING resource_id
"""

KEY_IN_USE = f"""
SELECT fingerprint, resource_id FROM idempotency_keys
WHERE owner_id = $1 AND key = $2 AND created_at >= now() - interval '{IDEMPOTENCY_HOURS} hours'
"""
