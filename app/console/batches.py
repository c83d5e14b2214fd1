"""Batches: the list, and one of them: how far it is, what failed, its files, and what can be done with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import READ, SUBMIT, WORK
from app.console.charts import Share, share_bar
from app.console.entrance import PREFIX, PageRoute
from app.console.pages import page
from app.console.render import HEADERS
from app.console.ticket_table import MEDIA_TYPE, csv_of
from app.errors import FileNotFound
from app.openai.ids import object_id
from app.queue.batches import FAILURES_READ, RETRY_OF
from app.services.batches import FINAL
from app.services.pages import Window
from app.storable import StorableText

PER_PAGE = 50
# The pace of fewer lines, or of a shorter time, says little.
LEAST_LINES, LEAST_SECONDS = 5, 5.0
SO_FAR = {True: "output", False: "errors"}
FILES = {"input": "input_file_id", "output": "output_file_id", "errors": "error_file_id"}

router = APIRouter(prefix=f"{PREFIX}/batches", route_class=PageRoute, include_in_schema=False)

Row = Mapping[str, Any]
Code = Annotated[StorableText, Form(max_length=255)]


@router.get("", dependencies=[READ])
async def batches(request: Request, older_than: UUID | None = None) -> Response:
    services, caller = services_of(request), caller_of(request)

    async def gather() -> dict[str, Any]:
        found = await services.batches.page(caller, Window(PER_PAGE, older_than))
        names = await services.files.names(caller, [row["input_file_id"] for row in found.rows])
        return {
            "rows": [shown(row, names) for row in found.rows],
            "older_than": older_than,
            "next_after": found.rows[-1]["id"] if found.more else None,
        }

    return await page(request, "batches.html", gather)


@router.get("/{batch_id}", dependencies=[READ])
async def batch(request: Request, batch_id: UUID) -> Response:
    services, caller = services_of(request), caller_of(request)

    async def gather() -> dict[str, Any]:
        row = await services.batches.get(caller, batch_id)
        ids = {what: row[column] for what, column in FILES.items() if row[column] is not None}
        names = await services.files.names(caller, list(ids.values()))
        so_far = await services.batches.files_so_far(row)
        failures = await services.batches.failures(caller, batch_id)
        return {
            "batch": shown(row, names),
            "files": {what: names[id_] for what, id_ in ids.items() if id_ in names},
            "so_far": [SO_FAR[done] for done in (True, False) if done in so_far],
            "waits": await _waits(request, row),
            "failures": failures,
            "codes": list(dict.fromkeys(failure["error_code"] for failure in failures)),
            "read": FAILURES_READ,
            "retries": [shown(each, {}) for each in await services.batches.retries(caller, batch_id)],
            "refused": row["errors"] if row["status"] == "failed" else None,
        }

    return await page(request, "batch.html", gather)


async def _waits(request: Request, row: Row) -> dict[str, Any] | None:
    """Why none of its lines runs yet; None where one does, or did."""
    services, caller = services_of(request), caller_of(request)
    if row["status"] != "in_progress" or row["completed"] + row["failed"]:
        return None
    if (id_ := await services.batches.pending(row["id"])) is None:
        return None
    line = await services.results.get_placed(caller, id_)
    waiting = await services.results.waiting(line)
    return None if waiting is None else {"model": line["model"], "waiting": waiting}


@router.get("/{batch_id}/files/{which}", dependencies=[READ])
async def file(request: Request, batch_id: UUID, which: Literal["input", "output", "errors"]) -> Response:
    services, caller = services_of(request), caller_of(request)
    found = await services.batches.get(caller, batch_id)
    if (id_ := found[FILES[which]]) is not None:
        row = await services.files.get(caller, id_)
        return _download(row, services.files.content(row), {"Content-Length": str(row["bytes"])})
    so_far = {SO_FAR[done]: row for done, row in (await services.batches.files_so_far(found)).items()}
    if which not in so_far:
        raise FileNotFound(f"The batch has no file of this kind ({which}): it has nothing for it, or not yet.")
    return _download(so_far[which], services.files.content_so_far(so_far[which]), {})


@router.get("/{batch_id}/table.csv", dependencies=[READ])
async def table(request: Request, batch_id: UUID) -> Response:
    """Its tickets, in the order of its lines."""
    services, caller = services_of(request), caller_of(request)
    found = await services.batches.get(caller, batch_id)
    names = await services.files.names(caller, [found["input_file_id"]])
    name = names.get(found["input_file_id"], object_id("batch", batch_id)).removesuffix(".jsonl")
    headers = HEADERS | {"Content-Disposition": f"attachment; filename*=utf-8''{quote(f'{name}.csv', safe='')}"}
    return StreamingResponse(
        csv_of(services.ticket_list.export_batch(caller, batch_id)), headers=headers, media_type=MEDIA_TYPE
    )


def _download(row: Row, content: AsyncIterator[bytes], headers: Mapping[str, str]) -> Response:
    disposition = f"attachment; filename*=utf-8''{quote(row['filename'], safe='')}"
    headers = {**HEADERS, **headers, "Content-Disposition": disposition}
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


@router.post("/{batch_id}/cancel", dependencies=[SUBMIT])
async def cancel(request: Request, batch_id: UUID) -> Response:
    await services_of(request).batches.cancel(caller_of(request), batch_id)
    return to_batch(request, batch_id)


@router.post("/{batch_id}/retry", dependencies=[WORK])
async def retry(request: Request, batch_id: UUID, error: Code = "") -> Response:
    """A new batch of all that failed, or of what failed with the code `error`."""
    row = await services_of(request).batches.retry_failed(caller_of(request), batch_id, error or None)
    return to_batch(request, row["id"])


def to_batch(request: Request, id_: UUID) -> Response:
    return RedirectResponse(f"{root_of(request)}{PREFIX}/batches/{id_}", 303, HEADERS)


def shown(row: Row, names: Mapping[UUID, str]) -> dict[str, Any]:
    """A batch as both pages show it."""
    done, total = row["completed"] + row["failed"], row["total"]
    cancelled = row["status"] in ("cancelling", "cancelled")
    rest = Share("cancelled or failed", "warn", row["failed"]) if cancelled else Share("failed", "bad", row["failed"])
    parts = [Share("succeeded", "good", row["completed"]), rest]
    return {
        "id": row["id"],
        "name": object_id("batch", row["id"]),
        "file": names.get(row["input_file_id"]),
        "endpoint": row["endpoint"],
        "status": row["status"],
        "final": row["status"] in FINAL,
        "cancellable": row["status"] in ("validating", "in_progress"),
        "created_at": row["created_at"],
        "ended_at": next((row[f"{status}_at"] for status in FINAL if row["status"] == status), None),
        "expires_at": row["expires_at"],
        "total": total,
        "completed": row["completed"],
        "failed": row["failed"],
        "tokens": None if row["prompt_tokens"] is None else row["prompt_tokens"] + row["completion_tokens"],
        "bar": share_bar(f"{done:,} of {total:,} done", parts, total) if total else "",
        "left": _seconds_left(row),
        "metadata": {name: value for name, value in (row["metadata"] or {}).items() if name != RETRY_OF},
        "retry_of": _uuid((row["metadata"] or {}).get(RETRY_OF)),
    }


def _seconds_left(row: Row) -> float | None:
    """Until all lines are done, at the pace so far; None where that says nothing."""
    done = row["completed"] + row["failed"]
    if row["status"] != "in_progress" or done < LEAST_LINES:
        return None
    seconds: float = (datetime.now(UTC) - row["in_progress_at"]).total_seconds()
    return None if seconds < LEAST_SECONDS else seconds / done * (row["total"] - done)


def _uuid(name: object) -> UUID | None:
    """Of a batch that the metadata names, which anybody may write."""
    try:
        return UUID(str(name).removeprefix("batch_"))
    except ValueError:
        return None
