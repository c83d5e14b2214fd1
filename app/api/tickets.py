"""The answer to whatever makes a ticket."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from app.api.dependencies import mark_replayed, root_of
from app.api.schemas import Ticket
from app.services.results import phase

POLL_AGAIN_SECONDS = "1"
_POLL_AGAIN = (b"retry-after", POLL_AGAIN_SECONDS.encode())


class JsonBytes(Response):
    """A model as it stands: on the busiest routes it is not worth validating an answer twice."""

    media_type = "application/json"

    def __init__(self, model: BaseModel, status_code: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """`headers` have names in lower case. Starlette's own steps would come to these."""
        self.status_code = status_code
        self.background = None
        self.body = model.__pydantic_serializer__.to_json(model)
        length = b"%d" % len(self.body)
        self.raw_headers = [*headers, (b"content-length", length), (b"content-type", b"application/json")]


def answer_with_ticket(request: Request, row: Mapping[str, Any], replayed: bool) -> Response:
    url = f"{root_of(request)}/results/{row['id']}"
    ticket = Ticket(
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
    response = JsonBytes(ticket, 202, ((b"location", url.encode("latin-1")), _POLL_AGAIN))
    mark_replayed(response, replayed)
    return response
