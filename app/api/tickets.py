"""The answer to whatever makes a ticket."""

from collections.abc import Mapping
from typing import Any

from fastapi import Response

from app.api.dependencies import mark_replayed
from app.api.schemas import Ticket
from app.services.results import phase

POLL_AGAIN_SECONDS = "1"


def answer_with_ticket(row: Mapping[str, Any], replayed: bool, response: Response) -> Ticket:
    url = f"/results/{row['id']}"
    response.headers["Location"] = url
    response.headers["Retry-After"] = POLL_AGAIN_SECONDS
    mark_replayed(response, replayed)
    return Ticket(
        result_id=row["id"],
        status=row["status"],
        phase=phase(row),
        model=row["model"],
        context_id=row["context_id"],
        retry_of=row["retry_of"],
        created_at=row["created_at"],
        status_url=url,
        cancel_url=f"{url}/cancel",
    )
