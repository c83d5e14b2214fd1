"""SQL of results that are not kept (`store: false`): their texts go, and what they took and cost stays."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from app.db.engine import Database
from app.db.tables.owners import NOBODY

# An engine's words may quote the prompt.
UNTOLD = "The message was delivered, and is not kept (store: false)."

# Those of a conversation are first added to it.
# Of a final result: prompt, request, answer and events. A request that is null tells that they are gone.
FORGET = f"""
WITH due AS MATERIALIZED (
    SELECT id, context_id FROM results
    WHERE id = ANY ($1::uuid[]) AND NOT kept AND request IS NOT NULL AND status <> 'pending'
      AND conversation_id IS NULL
    ORDER BY id FOR UPDATE
), unsaid AS (
    UPDATE contexts c SET content = NULL, messages = '[]', metadata = NULL
    FROM due WHERE c.id = ANY (ARRAY[due.context_id]) AND c.owner_id = {NOBODY}
), dropped AS (
    DELETE FROM result_events e USING due WHERE e.result_id = ANY (ARRAY[due.id])
), unsent AS (
    UPDATE attempts a
    SET provenance = provenance || '{{"parameters": {{}}}}',
        error_message = CASE WHEN error_message IS NOT NULL THEN $2 END
    FROM due WHERE a.result_id = ANY (ARRAY[due.id])
)
UPDATE results r
SET request = NULL, parameters = '{{}}', outputs = NULL, answer = NULL,
    provenance = provenance || '{{"parameters": {{}}}}',
    output = CASE WHEN output IS NOT NULL THEN '' END,
    error_message = CASE WHEN error_message IS NOT NULL THEN $2 END
FROM due WHERE r.id = ANY (ARRAY[due.id])
"""  # noqa: S608
# Whose answer nobody fetched. Those of a batch are needed until its files are written.
LEFT_BEHIND = """
SELECT r.id FROM results r
WHERE NOT r.kept AND r.request IS NOT NULL AND r.status <> 'pending'
  AND r.completed_at < now() - make_interval(secs => $1) AND r.conversation_id IS NULL
  AND (r.batch_id IS NULL OR NOT EXISTS (SELECT FROM batches b WHERE b.id = r.batch_id AND b.lease_until IS NOT NULL))
ORDER BY r.id LIMIT $2
"""


class UnkeptStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def forget(self, ids: Collection[UUID]) -> None:
        """Removes the texts of those that are final and not to be kept."""
        async with self._database.hot() as connection:
            await connection.execute(FORGET, list(ids), UNTOLD)

    async def left_behind(self, seconds: float, limit: int) -> list[UUID]:
        """Results that ended `seconds` ago, and whose texts are still there."""
        async with self._database.hot() as connection:
            rows: list[Any] = await connection.fetch(LEFT_BEHIND, seconds, limit)
        return [row["id"] for row in rows]
