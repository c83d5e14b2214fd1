"""/v1/batches: a file of requests, answered in files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from app.api.dependencies import IdempotencyKey, Services, caller_of, mark_replayed, services_of
from app.api.openai import chat, completions, embeddings, responses
from app.api.openai.documents import openai_errors
from app.api.openai.failures import failure_of
from app.api.openai.files import LONGEST_SECONDS, SHORTEST_SECONDS, listed, seconds_of
from app.api.openai.ids import object_id, uuid_of
from app.api.openai.requests import Prepared
from app.api.openai.responses_request import prepare_response
from app.api.problems import openai_error, openai_status
from app.api.security import READ, SUBMIT, WORK, GuardedRoute
from app.errors import LineDefective
from app.queue.ticket import CANCELLED, EXPIRED, Prompt, Status
from app.services.batches import WINDOW
from app.services.callers import Caller
from app.services.lines import Prepare
from app.storable import StorableText

Row = Mapping[str, Any]
Preparing = Callable[[Services, Caller, Mapping[str, Any]], Awaitable[Prepared]]

PREPARE: dict[str, Preparing] = {
    chat.FACE.path: chat.prepare_chat,
    completions.FACE.path: completions.prepare_completion,
    embeddings.FACE.path: embeddings.prepare_embedding,
    responses.FACE.path: prepare_response,
}
RENDER = {face.kind: face.render for face in (chat.FACE, completions.FACE, embeddings.FACE, responses.FACE)}

NOT_RUN = {
    CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was done."),
    EXPIRED: ("batch_expired", "The batch expired before this request was done."),
}
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


class ExpiresAfter(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST_SECONDS, le=LONGEST_SECONDS)]


class BatchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: StorableText
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[Annotated[StorableText, Field(max_length=64)], Annotated[StorableText, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: ExpiresAfter | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line's request, ready to be stored as a ticket."""

    model: str
    prompt: Prompt
    engine_parameters: dict[str, Any]
    kind: str
    request: dict[str, Any]
    webhook: dict[str, Any] | None


def preparing(services: Services) -> Prepare:
    """What makes tickets of lines: the code of the endpoints themselves."""

    async def prepare(caller: Caller, endpoint: str, body: Mapping[str, Any]) -> Line:
        made = await PREPARE[endpoint](services, caller, body)
        parameters = services.submissions.for_engine(made.parameters, nested=False)
        return Line(made.model, made.prompt, parameters, made.kind, made.request, made.webhook)

    return prepare


def render_line(batch: Row, row: Row) -> tuple[bool, bytes]:
    """A final result as a line of the output file (True) or of the error file."""
    line = _empty(row)
    completed = row["status"] == Status.COMPLETED
    code = row["error_code"]
    if completed:
        line["response"] = _response(row, 200, RENDER[row["kind"]](row, row["request"] or {}))
    elif code == EXPIRED or (code == CANCELLED and batch["status"] == "cancelling"):
        line["error"] = dict(zip(("code", "message"), NOT_RUN[code], strict=True))
    elif code == LineDefective.code:
        line["error"] = {"code": code, "message": row["error_message"]}
    else:
        failure = failure_of(row, row["kind"])
        line["response"] = _response(row, openai_status(failure), {"error": openai_error(failure)})
    return completed, to_json(line) + b"\n"


def defective_line(row: Row) -> bytes:
    """The line of the error file for a result that `render_line` failed on."""
    message = (
        f"A defect of the service kept this answer out of the file; its cause is in the log. GET /results/{row['id']} "
        "has the answer as it was generated."
    )
    return to_json(_empty(row) | {"error": {"code": LineDefective.code, "message": message}}) + b"\n"


def _empty(row: Row) -> dict[str, Any]:
    return {
        "id": f"batch_req_{row['id'].hex}",
        "custom_id": row["client_reference"],
        "response": None,
        "error": None,
    }


def _response(row: Row, status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": str(row["id"]), "body": body}


router = APIRouter(prefix="/v1/batches", tags=["openai"], route_class=GuardedRoute)


@router.post("", dependencies=[WORK], responses=openai_errors(404, 410, 413, 415))
async def create_batch(
    body: BatchRequest, request: Request, response: Response, key: IdempotencyKey = None
) -> dict[str, Any]:
    """Begins a batch: its lines are checked, and all are queued or, where one is not valid, none."""
    row, replayed = await services_of(request).batches.create(
        caller_of(request),
        uuid_of("file", body.input_file_id),
        body.endpoint,
        body.metadata,
        body.output_expires_after.seconds if body.output_expires_after else None,
        key,
    )
    mark_replayed(response, replayed)
    return rendered(row)


@router.get("", dependencies=[READ], responses=openai_errors())
async def list_batches(
    request: Request,
    after: Annotated[str | None, Query(description="the id of the last batch of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """Batches, newest first."""
    cursor = None if after is None else uuid_of("batch", after)
    page = await services_of(request).batches.page(caller_of(request), cursor, limit)
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
