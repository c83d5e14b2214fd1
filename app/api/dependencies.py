"""What the routes are given."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header, Query, Request, Response

from app.api.body_room import BodyRoom
from app.api.local import Connections
from app.api.spool import Spool
from app.config import Settings
from app.errors import InvalidRequest
from app.fleet.fleet import Fleet
from app.prompts.adapters import Adapters
from app.prompts.parsers import Parsers
from app.prompts.profiles import Profiles
from app.prompts.templates import Templates
from app.prompts.tokenizers import Tokenizers
from app.services.audit import Audit
from app.services.backlog import BacklogGauges
from app.services.batch_checks import BatchChecks
from app.services.batches import Batches
from app.services.callers import Caller
from app.services.catalog import Catalog
from app.services.changed_settings import ChangedSettings
from app.services.chats import Chats
from app.services.comparisons import Comparisons
from app.services.contexts import Contexts
from app.services.conversations import Conversations
from app.services.files import Files
from app.services.health import Health
from app.services.hosts import Hosts
from app.services.image_fetching import ImageFetcher
from app.services.inputs import Inputs
from app.services.instructions import Instructions
from app.services.keys import Keys
from app.services.limits import Limits
from app.services.meaning import Meaning
from app.services.model_orders import ModelOrders
from app.services.outputs import Outputs
from app.services.overview import Overviews
from app.services.pages import Page, Window
from app.services.picks import Picks
from app.services.process_logs import ProcessLogs
from app.services.pulse import Pulse
from app.services.ratings import Ratings
from app.services.results import Results
from app.services.servers import Servers
from app.services.sessions import Sessions
from app.services.streams import Streams
from app.services.submissions import Submissions
from app.services.ticket_list import TicketList
from app.services.uploads import Uploads
from app.services.usage import Usage
from app.services.webhooks import Webhooks
from app.services.wishes import Wishes

LONGEST_WAIT_SECONDS = 60
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)


@dataclass(frozen=True)
class Services:
    """Everything a route may use; made once by the lifespan."""

    settings: Settings
    contexts: Contexts
    results: Results
    conversations: Conversations
    submissions: Submissions
    inputs: Inputs
    # None where no images are fetched.
    images: ImageFetcher | None
    outputs: Outputs
    streams: Streams
    comparisons: Comparisons
    picks: Picks
    chats: Chats
    meaning: Meaning
    ratings: Ratings
    instructions: Instructions
    templates: Templates
    parsers: Parsers
    profiles: Profiles
    tokenizers: Tokenizers
    catalog: Catalog
    adapters: Adapters
    health: Health
    keys: Keys
    limits: Limits
    usage: Usage
    audit: Audit
    webhooks: Webhooks
    files: Files
    uploads: Uploads
    batches: Batches
    batch_checks: BatchChecks
    backlog: BacklogGauges
    fleet: Fleet
    servers: Servers
    model_orders: ModelOrders
    hosts: Hosts
    wishes: Wishes
    connections: Connections
    spool: Spool
    bodies: BodyRoom
    sessions: Sessions
    ticket_list: TicketList
    overviews: Overviews
    pulse: Pulse
    process_logs: ProcessLogs
    changed_settings: ChangedSettings


def services_of(request: Request) -> Services:
    found: Services = request.scope["state"]["services"]
    return found


def caller_of(request: Request) -> Caller:
    """On whose behalf the request is made."""
    caller: Caller = request.scope["state"]["caller"]
    return caller


def root_of(request: Request) -> str:
    """What paths begin with for the client: where a proxy offers this service, or nothing."""
    return str(request.scope.get("root_path", ""))


# Dependencies are coroutines although they await nothing: plain functions would each cost a thread switch.
async def window(
    limit: Annotated[int, Query(ge=1, le=1000, description="entries in one page, fewer where they are large")] = 100,
    after: Annotated[UUID | None, Query(description="the last id of the page before")] = None,
    created_after: Annotated[datetime | None, Query(description="RFC 3339; exclusive")] = None,
    created_before: Annotated[datetime | None, Query(description="RFC 3339; exclusive")] = None,
) -> Window:
    return Window(limit, after, aware("created_after", created_after), aware("created_before", created_before))


def aware(name: str, moment: datetime | None) -> datetime | None:
    """A time without an offset is taken as UTC."""
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        message = "is outside the range of times this service knows"
        raise InvalidRequest(f"{name}: {message}", errors=[{"field": name, "message": message}]) from None


async def wait_seconds(
    prefer: Annotated[
        str | None,
        Header(description="`wait=N` (RFC 7240) holds the answer up to N seconds, at most 60, for the result"),
    ] = None,
) -> int | None:
    """N of `Prefer: wait=N`, capped; None where there is none (unknown preferences are ignored)."""
    match = _WAIT.search(prefer or "")
    return min(int(match.group(1)), LONGEST_WAIT_SECONDS) if match else None


def mark_replayed(response: Response, replayed: bool) -> None:
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"


def link_next(request: Request, response: Response, page: Page) -> None:
    """Adds the Link header of RFC 8288 where there is a next page."""
    if page.next_after is not None:
        target = request.url.include_query_params(after=str(page.next_after))
        response.headers["Link"] = f'<{target}>; rel="next"'


WindowDep = Annotated[Window, Depends(window)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="the same key with the same request makes one thing, within 24 hours",
    ),
]
WaitDep = Annotated[int | None, Depends(wait_seconds)]

PROBLEM_CONTENT: dict[str, Any] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
DESCRIPTIONS = {
    400: "The body is not JSON",
    401: "No valid API key; `WWW-Authenticate` says what is expected",
    403: "The API key lacks the scope",
    404: "Not found",
    409: "Not possible in this state",
    410: "It was here and has been removed",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    422: "Not valid; `errors` names the fields",
    429: "A limit of the API key is reached; nothing was stored",
    503: "Postgres cannot serve requests now, or took too long for this one; `detail` says what to do",
}


# What any route may answer.
ANYWHERE = (401, 403, 429, 503)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for the OpenAPI document."""
    possible = (*statuses, *ANYWHERE)
    return {status: {"description": DESCRIPTIONS[status], "content": PROBLEM_CONTENT} for status in possible}
