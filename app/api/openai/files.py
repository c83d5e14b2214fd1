"""/v1/files: the inputs of batches, what batches wrote, and tensors of contexts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import FormData, UploadFile

from app.api.body import FORM_BYTES
from app.api.dependencies import IdempotencyKey, Services, caller_of, mark_replayed, services_of
from app.api.openai.documents import openai_errors
from app.api.security import READ, SUBMIT, UPLOAD, GuardedRoute
from app.errors import BodyTooLarge, invalid
from app.openai.ids import object_id, uuid_of
from app.queue.files import CHUNK_BYTES
from app.services.files import INPUT, UPLOADED, USER_DATA

PATH = "/v1/files"
MOST_FIELDS = 10
SHORTEST_SECONDS, LONGEST_SECONDS = 3600, 30 * 24 * 3600


def multipart(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """A form with a file, as the OpenAPI document describes it."""
    schema = {"type": "object", "required": list(required), "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


FORM = multipart(
    {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "of a batch JSONL, a request on each line; else anything",
        },
        "purpose": {"type": "string", "enum": list(UPLOADED)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": SHORTEST_SECONDS, "maximum": LONGEST_SECONDS},
    },
    "file",
    "purpose",
)

router = APIRouter(prefix=PATH, tags=["openai"], route_class=GuardedRoute)


@router.post("", dependencies=[UPLOAD], responses=openai_errors(410, 413, 503), openapi_extra=FORM)
async def create_file(request: Request, response: Response, key: IdempotencyKey = None) -> dict[str, Any]:
    """Stores the requests of a batch, or a tensor. Kept until deleted, or as long as `expires_after` says."""
    services = services_of(request)
    size = declared_size(request)
    await services.files.require_room(caller_of(request), max(1, (size or 0) - FORM_BYTES))
    with services.spool.reserved(size):
        row, replayed = await _receive(request, services, key)
    mark_replayed(response, replayed)
    return rendered(row)


async def _receive(request: Request, services: Services, key: str | None) -> tuple[Mapping[str, Any], bool]:
    """The stored file; True when an earlier request with the key had made it."""
    async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise invalid("file", "is required, as a part of multipart/form-data with a file name")
        purpose = form.get("purpose")
        if not isinstance(purpose, str) or purpose not in UPLOADED:
            raise invalid("purpose", f"must be {INPUT}, for the requests of a batch, or {USER_DATA}, for tensors")
        seconds = _seconds(form)
        if (file.size or 0) > services.settings.max_file_bytes:
            raise BodyTooLarge(
                f"The file is larger than {services.settings.max_file_bytes:,} bytes; make several batches of it, or "
                "raise MAX_FILE_BYTES."
            )
        name = (file.filename or "").replace("\x00", "")
        return await services.files.create(caller_of(request), purpose, name, seconds, partial(content_of, file), key)


def declared_size(request: Request) -> int | None:
    """Of the body, in bytes; None where it does not say."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdigit() else None


async def content_of(file: UploadFile) -> AsyncIterator[bytes]:
    await file.seek(0)
    while part := await file.read(CHUNK_BYTES):
        yield part


def _seconds(form: FormData) -> int | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise invalid("expires_after.anchor", "must be created_at")
    text = seconds if isinstance(seconds, str) else ""
    if not (text.isascii() and text.isdigit()) or not SHORTEST_SECONDS <= int(text[:9]) <= LONGEST_SECONDS:
        raise invalid("expires_after.seconds", f"must be a number from {SHORTEST_SECONDS} to {LONGEST_SECONDS}")
    return int(text)


@router.get("", dependencies=[READ], responses=openai_errors())
async def list_files(
    request: Request,
    after: Annotated[str | None, Query(description="the id of the last file of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[Literal["batch", "batch_output", "user_data"] | None, Query(description="only those")] = None,
) -> dict[str, Any]:
    """Files by the time they were made."""
    cursor = None if after is None else uuid_of("file", after)
    page = await services_of(request).files.page(
        caller_of(request), cursor, purpose, limit, newest_first=order == "desc"
    )
    return listed([rendered(row) for row in page.rows], page.more)


@router.get("/{file_id}", dependencies=[READ], responses=openai_errors(410))
async def get_file(file_id: str, request: Request) -> dict[str, Any]:
    """What is known of a file."""
    return rendered(await services_of(request).files.get(caller_of(request), uuid_of("file", file_id)))


@router.get(
    "/{file_id}/content",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"description": "The file", "content": {"application/octet-stream": {}}}, **openai_errors(410)},
)
async def get_file_content(file_id: str, request: Request) -> Response:
    """The file itself."""
    files = services_of(request).files
    row = await files.get(caller_of(request), uuid_of("file", file_id))
    headers = {
        "Content-Length": str(row["bytes"]),
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(row['filename'], safe='')}",
    }
    media_type = "application/octet-stream"
    if getattr(request.state, "head", False):
        return Response(headers=headers, media_type=media_type)
    return StreamingResponse(files.content(row), headers=headers, media_type=media_type)


@router.delete("/{file_id}", dependencies=[SUBMIT], responses=openai_errors(410))
async def delete_file(file_id: str, request: Request) -> dict[str, Any]:
    """Removes a file. A batch that has begun needs its input no more."""
    id_ = uuid_of("file", file_id)
    await services_of(request).files.delete(caller_of(request), id_)
    return {"id": object_id("file", id_), "object": "file", "deleted": True}


def rendered(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of files as OpenAI's object."""
    return {
        "id": object_id("file", row["id"]),
        "object": "file",
        "bytes": row["bytes"],
        "created_at": int(row["created_at"].timestamp()),
        "expires_at": seconds_of(row["expires_at"]),
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "status_details": None,
    }


def seconds_of(moment: Any) -> int | None:
    return None if moment is None else int(moment.timestamp())


def listed(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """OpenAI's form of a page."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }
