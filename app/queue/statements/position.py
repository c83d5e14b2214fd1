"""Where a result stands in the queue."""

POSITION_LIMIT = 1000

# How many of the owner's own are ahead, counted no further than anyone cares to read.
POSITION = f"""
SELECT count(*) + 1 FROM (
    SELECT FROM results
    WHERE status = 'pending' AND model = $1 AND wish = $5 AND owner_id = $4 AND attempt_token IS NULL
      AND available_at <= now() AND (rank, id) < ($2, $3)
    ORDER BY rank, id LIMIT {POSITION_LIMIT}
) ahead
"""

# The same of a row `r` of results in the statement that reads it; null for one that is not queued.
POSITION_OF_ROW = f"""
CASE WHEN r.status = 'pending' AND r.attempt_token IS NULL AND r.cancel_requested_at IS NULL THEN (
    SELECT count(*) + 1 FROM (
        SELECT FROM results o
        WHERE o.status = 'pending' AND o.model = r.model AND o.wish = r.wish AND o.owner_id = r.owner_id
          AND o.attempt_token IS NULL AND o.available_at <= now() AND (o.rank, o.id) < (r.rank, r.id)
        ORDER BY o.rank, o.id LIMIT {POSITION_LIMIT}
    ) ahead
) END
"""
