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
