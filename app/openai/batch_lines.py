"""The lines of a batch's files: a request as a ticket, and a final result as the line that answers it."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from app.db.tables.contexts import Prompt
from app.errors import AppError, LineDefective
from app.openai import chat_render, completions, embeddings, responses_render
from app.openai.chat_request import prepare_chat
from app.openai.failures import CallsUnreadable, failure_of, openai_error, openai_status
from app.openai.requests import Prepared, Sources, unsupported
from app.openai.responses_prepare import prepare_response
from app.queue.ticket import CANCELLED, EXPIRED, Status
from app.services.callers import Caller
from app.services.engine_parameters import engine_parameters
from app.services.lines import Prepare

Row = Mapping[str, Any]
Preparing = Callable[[Sources, Caller, Mapping[str, Any]], Awaitable[Prepared]]

PREPARE: dict[str, Preparing] = {
    chat_render.FACE.path: prepare_chat,
    completions.FACE.path: completions.prepare_completion,
    embeddings.FACE.path: embeddings.prepare_embedding,
    responses_render.FACE.path: prepare_response,
}
FACES = (chat_render.FACE, completions.FACE, embeddings.FACE, responses_render.FACE)
RENDER = {face.kind: face.render for face in FACES}

_LINE_ENDS = {"\u2028".encode(): b"\\u2028", "\u2029".encode(): b"\\u2029", "\x85".encode(): b"\\u0085"}
NOT_RUN = {
    CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was done."),
    EXPIRED: ("batch_expired", "The batch expired before this request was done."),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line's request, ready to be stored as a ticket."""

    model: str
    prompt: Prompt
    engine_parameters: dict[str, Any]
    kind: str
    request: dict[str, Any]
    webhook: dict[str, Any] | None
    kept: bool


def endpoint_of(line: bytes) -> str:
    """Where a batch that begins with this line goes: what the line says, if it says one, else chats."""
    with suppress(ValueError):
        request = from_json(line.removeprefix(BOM_UTF8))
        url = request.get("url") if isinstance(request, dict) else None
        if isinstance(url, str) and url in PREPARE:
            return url
    return chat_render.FACE.path


def preparing(services: Sources) -> Prepare:
    """What makes tickets of lines: the code of the endpoints themselves."""

    async def prepare(caller: Caller, endpoint: str, body: Mapping[str, Any]) -> Line:
        made = await PREPARE[endpoint](services, caller, body)
        if made.turn is not None:
            raise unsupported("conversation", "the lines of a batch do not wait for each other; leave it out")
        parameters = engine_parameters(made.parameters, services.settings, nested=False)
        return Line(made.model, made.prompt, parameters, made.kind, made.request, made.webhook, made.kept)

    return prepare


def render_line(batch: Row, row: Row) -> tuple[bool, bytes]:
    """A final result as a line of the output file (True) or of the error file."""
    line = _empty(row)
    completed = row["status"] == Status.COMPLETED
    code = row["error_code"]
    if completed:
        try:
            line["response"] = _response(row, 200, RENDER[row["kind"]](row, row["request"] or {}))
        except CallsUnreadable as error:
            completed, line["response"] = False, _refused(row, error)
    elif code == EXPIRED or (code == CANCELLED and _with_its_batch(batch, row)):
        line["error"] = dict(zip(("code", "message"), NOT_RUN[code], strict=True))
    elif code == LineDefective.code:
        line["error"] = {"code": code, "message": row["error_message"]}
    else:
        line["response"] = _refused(row, failure_of(row, row["kind"]))
    return completed, json_line(line)


def _with_its_batch(batch: Row, row: Row) -> bool:
    """Whether a line was cancelled as its batch was, and not by itself before."""
    since, asked = batch["cancelling_at"], row["cancel_requested_at"]
    return since is not None and (asked is None or asked >= since)


def json_line(document: Mapping[str, Any]) -> bytes:
    """JSON on one line, whatever is taken for the end of one: Python's `splitlines` knows three characters more."""
    line = to_json(document)
    for character, escape in _LINE_ENDS.items():
        line = line.replace(character, escape)
    return line + b"\n"


def defective_line(row: Row) -> bytes:
    """The line of the error file for a result that `render_line` failed on."""
    message = (
        f"A defect of the service kept this answer out of the file; its cause is in the log. GET /results/{row['id']} "
        "has the answer as it was generated."
    )
    return json_line(_empty(row) | {"error": {"code": LineDefective.code, "message": message}})


def _empty(row: Row) -> dict[str, Any]:
    return {
        "id": f"batch_req_{row['id'].hex}",
        "custom_id": row["client_reference"],
        "response": None,
        "error": None,
    }


def _refused(row: Row, error: AppError) -> dict[str, Any]:
    return _response(row, openai_status(error), {"error": openai_error(error)})


def _response(row: Row, status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": str(row["id"]), "body": body}
