"""A line of a batch by itself: from its text to what is stored of it, or to what is wrong with it.

What depends on the other lines is left to whoever gathers them (`line_gathering.py`): lines are checked in several
processes at once.
"""

from __future__ import annotations

import traceback
from codecs import BOM_UTF8
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import takewhile
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import to_json

from app.db.ids import id_in_order, time_of
from app.db.tables.contexts import Prompt
from app.errors import AppError, DatabaseUnavailable, LineDefective, ModelNotFound
from app.queue.batch_lines import context_line, rankless_line
from app.queue.ticket import Submission
from app.services.callers import Caller
from app.services.lines import DEFECTIVE, LineError, Prepare, PreparedLine, Undecided, Unprepared
from app.storable import TooManyValues, parsed_json
from app.tasks import task_of

LONGEST_CUSTOM_ID = 512
PRIORITY = -50
# The roles of what a chat begins with.
INSTRUCTING = ("system", "developer")


@dataclass(frozen=True, slots=True)
class LinesOf:
    """What all lines of a batch have in common; `longest` in bytes."""

    batch_id: UUID
    endpoint: str
    owner_id: int
    key_id: UUID | None
    created_at: datetime
    expires_at: datetime | None
    wish: str
    caller: Caller
    longest: int


class Part(NamedTuple):
    """Lines that follow each other, with their numbers; None stands for one that is too long.

    Their ids are made for the milliseconds from `ms` on, so that they are in order whoever makes them.
    """

    ms: int
    lines: list[tuple[int, bytes | None]]


class CheckedLine(NamedTuple):
    """What became of a line: with an `error` (code, message, parameter) nothing is stored of it."""

    number: int
    custom_id: str | None = None
    error: tuple[str, str, str | None] | None = None
    # As the line names it, and as it is run: none where a defect failed the line.
    named: str = ""
    model: str = ""
    # A digest of what the chat begins with.
    beginning: str = ""
    context: bytes = b""
    # Up to the rank.
    result: bytes = b""
    # How a defect came about that failed the line.
    defect: str | None = None
    undecided: bool = False


class LineChecks:
    """Checks lines of one batch by the code of its endpoint."""

    def __init__(self, lines: LinesOf, prepare: Prepare) -> None:
        self._lines = lines
        self._prepare = prepare
        self._unknown_models: dict[str, ModelNotFound] = {}

    async def check(self, part: Part, place: int) -> CheckedLine:
        """The line at this place of the part.

        Raises:
            DatabaseUnavailable: nothing can be said of it now.
        """
        number, line = part.lines[place]
        custom_id = None
        try:
            if line is None:
                raise LineError("body_too_large", f"The line is longer than {self._lines.longest:,} bytes.")
            request = _document(number, line)
            custom_id = _custom_id(request)
            body = self._body(request)
            return await self._stored(number, custom_id, body, id_in_order(part.ms, place))
        except LineError as error:
            return CheckedLine(number, custom_id, (error.code, error.message, error.param))
        except Undecided:
            return CheckedLine(number, custom_id, undecided=True)

    def failed(self, number: int, custom_id: str, model: str, id_: UUID, message: str) -> CheckedLine:
        """What is stored of a line that cannot be stored itself."""
        return self._row(number, custom_id, Unprepared({"model": model}), id_, (LineDefective.code, message))

    async def _stored(self, number: int, custom_id: str, body: dict[str, Any], id_: UUID) -> CheckedLine:
        try:
            prepared = await self._prepared(body)
            row = self._row(number, custom_id, prepared, id_)
        except (LineError, DatabaseUnavailable, Undecided):
            raise
        except Exception:
            row = self._row(number, custom_id, Unprepared(body), id_, (LineDefective.code, DEFECTIVE))
            row = row._replace(model="", defect=traceback.format_exc())
        named = body.get("model")
        return row._replace(named=named) if isinstance(named, str) else row

    def _body(self, request: dict[str, Any]) -> dict[str, Any]:
        url, body = request["url"], request["body"]
        if request["method"] != "POST":
            raise LineError("invalid_method", "method: must be POST", "method")
        if url != self._lines.endpoint:
            raise LineError("mismatched_endpoint", f"url: must be {self._lines.endpoint}, as the batch has it", "url")
        if not isinstance(body, dict):
            raise LineError("invalid_request", "body: must be an object", "body")
        if body.get("stream"):
            raise LineError("unsupported_parameter", "stream: a batch is not streamed; leave it out", "body.stream")
        return body

    async def _prepared(self, body: dict[str, Any]) -> PreparedLine:
        model = body.get("model")
        known = self._unknown_models.get(model) if isinstance(model, str) else None
        try:
            if known is not None:
                raise known
            prepared = await self._prepare(self._lines.caller, self._lines.endpoint, body)
            self._lines.caller.require_model(prepared.model, prepared.engine_parameters.get("lora_name"))
            return prepared
        except DatabaseUnavailable:
            raise
        except AppError as error:
            if isinstance(error, ModelNotFound) and isinstance(model, str):
                self._unknown_models[model] = error
            field = error.errors[0]["field"] if error.errors else None
            raise LineError(error.code, error.detail, f"body.{field}" if field else "body") from None

    def _row(
        self,
        number: int,
        custom_id: str,
        line: PreparedLine,
        id_: UUID,
        failed: tuple[str, str] | None = None,
    ) -> CheckedLine:
        """A line as it is stored; with the code and message of an error, it has failed."""
        lines, created_at = self._lines, time_of(id_)
        ticket = Submission(
            id_,
            id_in_order(id_.int >> 80, (id_.int >> 64) & 0xFFF),
            line.model,
            line.engine_parameters,
            PRIORITY,
            created_at,
            created_at,
            expires_at=lines.expires_at,
            client_reference=custom_id,
            owner_id=lines.owner_id,
            key_id=lines.key_id,
            task=task_of(line.engine_parameters),
            kind=line.kind,
            request=line.request,
            webhook=line.webhook,
            kept=line.kept,
            wish=lines.wish,
        )
        return CheckedLine(
            number,
            custom_id,
            model=line.model,
            beginning=beginning_of(line.prompt),
            context=context_line(ticket, line.prompt),
            result=rankless_line(ticket, lines.batch_id, number, failed),
        )


def _document(number: int, line: bytes) -> dict[str, Any]:
    try:
        # Some editors begin a file with a byte order mark.
        request = parsed_json(line.removeprefix(BOM_UTF8) if number == 1 else line)
    except TooManyValues as error:
        raise LineError("body_too_large", f"This line {error}.") from None
    except ValueError as error:
        raise LineError("invalid_json_line", f"This line is not JSON: {error}.") from None
    if not isinstance(request, dict):
        raise LineError("invalid_json_line", "This line is not a JSON object.")
    for name in ("custom_id", "method", "url", "body"):
        if request.get(name) is None:
            raise LineError("missing_required_parameter", f"{name}: is required", name)
    return request


def _custom_id(request: dict[str, Any]) -> str:
    custom_id = request["custom_id"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_CUSTOM_ID or "\x00" in custom_id:
        raise LineError(
            "invalid_custom_id", f"custom_id: must be text of 1 to {LONGEST_CUSTOM_ID} characters", "custom_id"
        )
    return custom_id


def beginning_of(prompt: Prompt) -> str:
    """A digest of what a chat is told before anybody says something; empty where there is nothing."""
    told = list(takewhile(lambda message: message["role"] in INSTRUCTING, prompt.messages or ()))
    return sha256(to_json(told)).hexdigest() if told else ""
