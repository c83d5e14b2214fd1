"""Renews leases."""

from app.queue.statements.parts import HELD

RENEW = f"""
UPDATE results r SET available_at = now() + make_interval(secs => $4), server = coalesce(g.server, r.server)
FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS g(id, token, server)
WHERE {HELD}
RETURNING r.attempt_token AS token, r.cancel_requested_at IS NOT NULL AS cancel_requested, r.streamed,
          coalesce(r.expires_at <= now(), false) AS expired
"""
