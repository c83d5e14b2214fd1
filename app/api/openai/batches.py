"""/v1/batches: a file of requests, answered in files."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.api.dependencies import IdempotencyKey, aware, caller_of, mark_replayed, services_of
from app.api.openai.documents import openai_errors
from app.api.openai.files import LONGEST_SECONDS, SHORTEST_SECONDS, listed, seconds_of
from app.api.security import READ, SUBMIT, WORK, GuardedRoute
from app.api.wishes import wish_of
from app.openai.ids import object_id, uuid_of
from app.services.batches import WINDOW
from app.services.pages import Window
from app.storable import StorableText

Row = Mapping[str, Any]

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
MOMENTS = (
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


def whole(value: Any) -> Any:
    """JSON's integers are numbers without a fraction, 3600.0 among them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class ExpiresAfter(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["created_at"]
    seconds: Annotated[int, BeforeValidator(whole), Field(ge=SHORTEST_SECONDS, le=LONGEST_SECONDS)]


Metadata = Annotated[
    dict[Annotated[StorableText, Field(max_length=64)], Annotated[StorableText, Field(max_length=512)]],
    Field(max_length=16),
]


class BatchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: StorableText
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


router = APIRouter(prefix="/v1/batches", tags=["openai"], route_class=GuardedRoute)


@router.post("", dependencies=[WORK], responses=openai_errors(404, 410, 413, 415))
async def create_batch(
    body: BatchRequest, request: Request, response: Response, key: IdempotencyKey = None
) -> dict[str, Any]:
    """Begins a batch: its lines are checked, and all are queued or, where one is not valid, none."""
    services, wish = services_of(request), wish_of(request)
    await services.wishes.require(wish)
    row, replayed = await services.batches.create(
        caller_of(request),
        uuid_of("file", body.input_file_id),
        body.endpoint,
        body.metadata,
        body.output_expires_after.seconds if body.output_expires_after else None,
        wish,
        key,
    )
    mark_replayed(response, replayed)
    return rendered(row)


@router.get("", dependencies=[READ], responses=openai_errors())
async def list_batches(
    request: Request,
    after: Annotated[str | None, Query(description="the id of the last batch of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: Annotated[list[Status] | None, Query(description="only those; repeated for several")] = None,
    created_after: Annotated[datetime | None, Query(description="RFC 3339 or Unix seconds; exclusive")] = None,
    created_before: Annotated[datetime | None, Query(description="RFC 3339 or Unix seconds; exclusive")] = None,
) -> dict[str, Any]:
    """Batches, newest first. OpenAI's own list takes `after` and `limit` alone."""
    cursor = None if after is None else uuid_of("batch", after)
    window = Window(limit, cursor, aware("created_after", created_after), aware("created_before", created_before))
    page = await services_of(request).batches.page(caller_of(request), window, status)
    return listed([rendered(row) for row in page.rows], page.more)


@router.get("/{batch_id}", dependencies=[READ], responses=openai_errors(410))
async def get_batch(batch_id: str, request: Request) -> dict[str, Any]:
    """A batch and how far it is."""
    return rendered(await services_of(request).batches.get(caller_of(request), uuid_of("batch", batch_id)))


@router.post("/{batch_id}/cancel", dependencies=[SUBMIT], responses=openai_errors(409, 410))
async def cancel_batch(batch_id: str, request: Request) -> dict[str, Any]:
    """Cancels what is not done yet; what is done is in the output file."""
    return rendered(await services_of(request).batches.cancel(caller_of(request), uuid_of("batch", batch_id)))


def rendered(row: Row) -> dict[str, Any]:
    """A row of batches as OpenAI's object."""
    return {
        "id": object_id("batch", row["id"]),
        "object": "batch",
        "endpoint": row["endpoint"],
        "errors": None if row["errors"] is None else {"object": "list", **row["errors"]},
        "input_file_id": object_id("file", row["input_file_id"]),
        "completion_window": WINDOW,
        "status": row["status"],
        "output_file_id": _file(row["output_file_id"]),
        "error_file_id": _file(row["error_file_id"]),
        "created_at": seconds_of(row["created_at"]),
        **{name: seconds_of(row[name]) for name in MOMENTS},
        "request_counts": {name: row[name] for name in ("total", "completed", "failed")},
        "metadata": row["metadata"],
        "usage": _usage(row),
    }


def _file(id_: Any) -> str | None:
    return None if id_ is None else object_id("file", id_)


def _usage(row: Row) -> dict[str, Any] | None:
    """Known at the end."""
    if row["prompt_tokens"] is None:
        return None
    return {
        "input_tokens": row["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": row["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
    }
