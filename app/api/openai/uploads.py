"""/v1/uploads: a file that comes in parts, each a request of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.datastructures import UploadFile

from app.api.dependencies import caller_of, services_of
from app.api.openai.batches import ExpiresAfter, whole
from app.api.openai.documents import openai_errors
from app.api.openai.files import MOST_FIELDS, content_of, declared_size, multipart, rendered, seconds_of
from app.api.security import READ, SUBMIT, UPLOAD, GuardedRoute
from app.errors import BodyTooLarge, invalid
from app.openai.ids import object_id, uuid_of
from app.storable import Storable, StorableText

PATH = "/v1/uploads"
PART_BYTES = 64 * 1024 * 1024
MOST_PARTS = 10_000
PART_FORM = multipart({"data": {"type": "string", "format": "binary", "description": "at most 64 MiB"}}, "data")


class NewUpload(Storable):
    model_config = ConfigDict(extra="forbid", strict=True)

    filename: str
    purpose: Literal["batch"]
    bytes: Annotated[int, BeforeValidator(whole), Field(ge=1, description="what the parts will come to")]
    mime_type: str = Field(description="any: the content is what counts")
    expires_after: ExpiresAfter | None = Field(None, description="how long the file is kept; without end if left out")


class Completion(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    part_ids: list[StorableText] = Field(
        default_factory=list, max_length=MOST_PARTS, description="at least one, in the file's order"
    )
    md5: Annotated[str | None, Field(pattern="^[0-9a-fA-F]{32}$")] = Field(None, description="of the whole file")


router = APIRouter(prefix=PATH, tags=["openai"], route_class=GuardedRoute)


@router.post("", dependencies=[SUBMIT], responses=openai_errors(413, 415))
async def create_upload(body: NewUpload, request: Request) -> dict[str, Any]:
    """Begins an upload, which takes parts for an hour."""
    services = services_of(request)
    largest = services.settings.max_file_bytes
    if body.bytes > largest:
        raise BodyTooLarge(
            f"The file would be larger than {largest:,} bytes; make several batches of it, or raise MAX_FILE_BYTES."
        )
    seconds = None if body.expires_after is None else body.expires_after.seconds
    return _upload(await services.uploads.create(caller_of(request), body.filename, body.bytes, seconds), None)


@router.get("/{upload_id}", dependencies=[READ], responses=openai_errors())
async def get_upload(upload_id: str, request: Request) -> dict[str, Any]:
    """Whether it is `pending`, `completed`, `cancelled` or `expired`."""
    return _upload(*await services_of(request).uploads.get(caller_of(request), uuid_of("upload", upload_id)))


@router.post("/{upload_id}/parts", dependencies=[UPLOAD], responses=openai_errors(413, 503), openapi_extra=PART_FORM)
async def add_part(upload_id: str, request: Request) -> dict[str, Any]:
    """Adds a part. Several may be sent at once: their order is told at the end."""
    services, caller, id_ = services_of(request), caller_of(request), uuid_of("upload", upload_id)
    await services.uploads.require_open(caller, id_)
    size = declared_size(request)
    with services.spool.reserved(size):
        async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
            data = form.get("data")
            if not isinstance(data, UploadFile):
                raise invalid("data", "is required, as a part of multipart/form-data with a file name")
            if (data.size or 0) > PART_BYTES:
                raise BodyTooLarge(f"The part is larger than {PART_BYTES:,} bytes: send it as several.")
            part = await services.uploads.add_part(caller, id_, content_of(data))
    return {
        "id": object_id("part", part["id"]),
        "object": "upload.part",
        "created_at": seconds_of(part["created_at"]),
        "upload_id": object_id("upload", id_),
    }


@router.post("/{upload_id}/complete", dependencies=[SUBMIT], responses=openai_errors(410, 413, 415))
async def complete_upload(upload_id: str, body: Completion, request: Request) -> dict[str, Any]:
    """Makes the file of the parts that are named; others are removed. Sent again, the answer is the same."""
    uploads, caller, id_ = services_of(request).uploads, caller_of(request), uuid_of("upload", upload_id)
    await uploads.get(caller, id_)
    part_ids = [uuid_of("part", each) for each in body.part_ids]
    if not part_ids or len(set(part_ids)) < len(part_ids):
        raise invalid("part_ids", "must name at least one part, and none twice")
    return _upload(*await uploads.complete(caller, id_, part_ids, body.md5))


@router.post("/{upload_id}/cancel", dependencies=[SUBMIT], responses=openai_errors())
async def cancel_upload(upload_id: str, request: Request) -> dict[str, Any]:
    """Removes the parts; no more can be added."""
    id_ = uuid_of("upload", upload_id)
    return _upload(await services_of(request).uploads.cancel(caller_of(request), id_), None)


def _upload(row: Mapping[str, Any], file: Mapping[str, Any] | None) -> dict[str, Any]:
    """A row of uploads as OpenAI's object."""
    return {
        "id": object_id("upload", row["id"]),
        "object": "upload",
        "bytes": row["bytes"],
        "created_at": seconds_of(row["created_at"]),
        "expires_at": seconds_of(row["expires_at"]),
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": row["status"],
        "file": None if file is None else rendered(file),
    }
