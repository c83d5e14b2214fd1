"""All SQL of comparisons: one prompt, a ticket for each model, stored together or not at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.db.engine import Database
from app.db.ids import time_of
from app.db.tables.contexts import Prompt
from app.queue.columns import PROMPT
from app.queue.statements.keys import TAKE_KEY
from app.queue.statements.submit import CREATE_CONTEXT, SUBMIT
from app.queue.store import submission_row
from app.queue.ticket import Idempotency, Submission

Row = Mapping[str, Any]

# A context that is being deleted is waited for: then it is there and stays, or is not there.
HOLD_CONTEXT = "SELECT FROM contexts WHERE id = $1 AND owner_id = $2 FOR KEY SHARE"
CREATE = """
INSERT INTO comparisons (id, owner_id, key_id, context_id, with_prompt, result_ids, models, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
GET = "SELECT * FROM comparisons WHERE id = $1 AND owner_id = $2"
STATUSES = "SELECT id, status FROM results WHERE id = ANY ($1::uuid[]) AND owner_id = $2"
# Texts are read as far as they come to $3 bytes together; `seconds` are those from the first start to the end.
ANSWERS = """
SELECT r.id, r.status, r.server, r.finish_reason, r.prompt_tokens, r.completion_tokens, r.error_code, r.error_message,
       r.attempt_token, r.cancel_requested_at, r.wish, r.parameters ->> 'temperature' AS temperature,
       extract(epoch FROM r.completed_at - r.started_at)::float8 AS seconds,
       (SELECT sum(a.cost) FROM attempts a WHERE a.result_id = r.id) AS cost,
       CASE WHEN sum(octet_length(r.output)) OVER (ORDER BY r.id) <= $3 THEN r.output END AS output
FROM results r WHERE r.id = ANY ($1::uuid[]) AND r.owner_id = $2
"""


@dataclass(frozen=True, slots=True)
class NewComparison:
    """`prompt` is stored under the id `context_id`; None where a context of that id is stored already."""

    id: UUID
    owner_id: int
    key_id: UUID | None
    context_id: UUID
    prompt: Prompt | None
    tickets: Sequence[Submission]
    idempotency: Idempotency | None


class ComparisonStore:
    """Every method raises DatabaseUnavailable when Postgres is out of reach."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewComparison) -> bool:
        """Stores a comparison with its tickets in one transaction.

        False when its context does not exist or its Idempotency-Key is in use: then nothing was stored.
        """
        created_at = time_of(new.id)
        async with self._database.transaction() as connection:
            held = (new.context_id, new.owner_id)
            if new.prompt is None and await connection.fetchrow(HOLD_CONTEXT, *held) is None:
                return False
            if new.idempotency is not None:
                key, fingerprint = new.idempotency.key, new.idempotency.fingerprint
                if await connection.fetchval(TAKE_KEY, new.owner_id, key, fingerprint, new.id) is None:
                    return False
            if new.prompt is not None:
                prompt = (new.context_id, new.owner_id, created_at, None, None, *PROMPT.values(new.prompt))
                await connection.execute(CREATE_CONTEXT, *([value] for value in prompt))
            rows = [submission_row(ticket) for ticket in new.tickets]
            await connection.execute(SUBMIT, *(list(column) for column in zip(*rows, strict=True)))
            await connection.execute(
                CREATE,
                new.id,
                new.owner_id,
                new.key_id,
                new.context_id,
                new.prompt is not None,
                [ticket.id for ticket in new.tickets],
                [ticket.model for ticket in new.tickets],
                created_at,
            )
        return True

    async def get(self, id_: UUID, owner_id: int) -> Row | None:
        async with self._database.hot() as connection:
            row: Row | None = await connection.fetchrow(GET, id_, owner_id)
        return row

    async def statuses(self, result_ids: Sequence[UUID], owner_id: int) -> dict[UUID, str]:
        """The status of each result that is still there."""
        async with self._database.hot() as connection:
            return {row["id"]: row["status"] for row in await connection.fetch(STATUSES, result_ids, owner_id)}

    async def answers(self, result_ids: Sequence[UUID], owner_id: int, most_bytes: int) -> dict[UUID, Row]:
        """What the table shows of each result that is still there; texts up to `most_bytes` together."""
        async with self._database.hot() as connection:
            return {row["id"]: row for row in await connection.fetch(ANSWERS, result_ids, owner_id, most_bytes)}
