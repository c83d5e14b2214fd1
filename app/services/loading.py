"""From the file of a batch to its tickets: every line is checked first, then all are stored or none is.

Runs in the API processes, which have the models' chat templates. A batch whose loader died is taken by another one.
"""

from __future__ import annotations

import asyncio
import time
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from itertools import takewhile
from typing import Any

from pydantic_core import to_json

from app.background import Pace
from app.config import Settings
from app.db.engine import Database
from app.db.ids import time_of, uuid7
from app.db.tables.contexts import Prompt
from app.errors import AppError, DatabaseUnavailable, FileNotFound, LineDefective, ModelNotFound
from app.queue.batch_lines import LineSpool, SpooledLine, context_line, result_line
from app.queue.batches import BatchStore, LeaseLost
from app.queue.ticket import Submission
from app.services.batches import WINDOW_SECONDS
from app.services.callers import Caller
from app.services.files import Files
from app.services.keys import Keys
from app.services.lines import DEFECTIVE, LineError, Prepare, PreparedLine, Unprepared, lines_of
from app.storable import TooManyValues, parsed_json
from app.tasks import task_of
from app.telemetry import logger
from app.telemetry.metrics import SUBMITTED, model_label

log = logger("batches")

MOST_LINES = 50_000
ERRORS_SHOWN = 100
LONGEST_CUSTOM_ID = 512
LONGEST_VALUE_SHOWN = 60
# Until this share of the window is left, everything that is sent by itself goes first.
LAST_SHARE = 1 / 12
PRIORITY = -50
# The roles of what a chat begins with.
INSTRUCTING = ("system", "developer")
MOST_TRIES = 10
TRY_AGAIN_SECONDS = 5.0
NOT_STORABLE = "Postgres cannot store this request; the cause is in the service's log. No other line was affected."
DEFECTS_LOGGED = 10

Row = Mapping[str, Any]


class Loader:
    def __init__(
        self, database: Database, files: Files, prepare: Prepare, arrived: asyncio.Event, settings: Settings
    ) -> None:
        self._store = BatchStore(database)
        self._keys = Keys(database)
        self._files = files
        self._prepare = prepare
        self._arrived = arrived
        self._settings = settings

    async def run(self) -> None:
        """Loads batches until cancelled; the one under way then is left to another process."""
        while True:
            self._arrived.clear()
            with suppress(DatabaseUnavailable):
                while batch := await self._store.take_to_load(self._settings.lease_seconds):
                    await self._work(batch)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), self._settings.poll_seconds)

    async def _work(self, batch: Row) -> None:
        if batch["tries"] > MOST_TRIES:
            await self._refuse(batch, [_internal()], 1)
            return
        try:
            await self._store.hold(batch, self._load(batch), self._settings.lease_seconds)
        except LeaseLost:
            log.warning("another process loads the batch", batch=batch["id"])
        except (DatabaseUnavailable, asyncio.CancelledError):
            with suppress(DatabaseUnavailable):
                await self._store.give_back(batch, 0.0, count=False)
            raise
        except Exception:
            log.exception("a defect of the service ended the loading of a batch", batch=batch["id"])
            await self._store.give_back(batch, TRY_AGAIN_SECONDS, count=True)

    async def _load(self, batch: Row) -> None:
        started = time.monotonic()
        with LineSpool() as spool:
            caller = await self._caller(batch)
            check = Check(batch, caller, self._prepare, self._settings, spool)
            try:
                file = await self._files.get(Caller(batch["owner_id"]), batch["input_file_id"])
                await check.read(lines_of(self._files.content(file), self._settings.max_body_bytes))
            except DatabaseUnavailable:
                raise
            except AppError as error:
                # The file is gone.
                check.refuse(None, LineError(FileNotFound.code, error.detail, "input_file_id"))
            if not check.problems:
                check.raise_if_all_defective()
                await self._require_room(batch, check)
            checked = time.monotonic()
            if check.problems:
                log.info("batch refused", batch=batch["id"], problems=check.problem_count)
                await self._refuse(batch, check.problems, check.problem_count)
                return
            await self._store.load(batch, spool, check.refused_row)
        for model, count in check.models.items():
            SUBMITTED.labels(model_label(model)).inc(count)
        log.info(
            "batch loaded",
            batch=batch["id"],
            lines=check.count,
            defective=check.defects,
            check_seconds=round(checked - started, 2),
            store_seconds=round(time.monotonic() - checked, 2),
        )

    async def _caller(self, batch: Row) -> Caller:
        """On whose behalf its lines are sent: bounded to models as the key is that made it."""
        if batch["key_id"] is None:
            return Caller(batch["owner_id"])
        return await self._keys.bounds(batch["key_id"])

    async def _require_room(self, batch: Row, check: Check) -> None:
        if batch["key_id"] is not None:
            check.require_room(await self._store.pending_room(batch["key_id"]))

    async def _refuse(self, batch: Row, problems: list[dict[str, Any]], count: int) -> None:
        await self._store.refuse(batch, {"total": count, "data": problems})


class Check:
    """One pass over the lines of a batch, which writes what is to be stored into the spool, if there is one."""

    def __init__(
        self,
        batch: Row,
        caller: Caller,
        prepare: Prepare,
        settings: Settings,
        spool: LineSpool | None,
    ) -> None:
        self._batch = batch
        self._caller = caller
        self._prepare = prepare
        self._largest = settings.max_body_bytes
        self._spool = spool
        self._rank = batch["created_at"] + timedelta(seconds=WINDOW_SECONDS * (1 - LAST_SHARE))
        # A place for each beginning that chats share: those with the same one are run together, so that the engine has
        # it in its cache.
        self._beginnings: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._unknown_models: dict[str, ModelNotFound] = {}
        self._defect: Exception | None = None
        self.count = self.defects = 0
        self.models: dict[str, int] = {}
        self.problems: list[dict[str, Any]] = []
        self.problem_count = 0

    async def read(self, given: AsyncIterator[tuple[int, bytes | None]]) -> None:
        pace = Pace()
        async for number, line in given:
            if line is not None and not line.strip():
                continue
            self.count += 1
            if self.count > MOST_LINES:
                message = f"The file has more than {MOST_LINES:,} lines; make several batches of it."
                self.refuse(None, LineError("too_many_lines", message))
                return
            try:
                await self._take(number, line)
            except LineError as error:
                self.refuse(number, error)
            await pace.step()
        if not self.count:
            self.refuse(None, LineError("empty_file", "The file has no lines."))

    def refuse(self, number: int | None, error: LineError) -> None:
        self.problem_count += 1
        if len(self.problems) < ERRORS_SHOWN:
            self.problems.append({"line": number, "code": error.code, "message": error.message, "param": error.param})

    def require_room(self, room: tuple[int, int] | None) -> None:
        """Refuses all where they are more than the key's `room`: how many tickets it may have pending, and has."""
        if room is not None and self.count + room[1] > room[0]:
            most, pending = room
            message = f"The key may have {most:,} tickets pending, {pending:,} are, and these are {self.count:,} more."
            self.refuse(None, LineError("pending_limit_reached", message))

    def raise_if_all_defective(self) -> None:
        """What no line gets past is no line's fault: the batch is tried again as a whole."""
        if self._defect is not None and self.defects == self.count:
            raise self._defect

    async def _take(self, number: int, line: bytes | None) -> None:
        if line is None:
            raise LineError("body_too_large", f"The line is longer than {self._largest:,} bytes.")
        custom_id, body = self._request(number, line)
        try:
            prepared = await self._prepared(body)
            row = self._row(number, custom_id, prepared)
        except (LineError, DatabaseUnavailable):
            raise
        except Exception as error:
            self._note(number, error)
            row = self._row(number, custom_id, Unprepared(body), (LineDefective.code, DEFECTIVE))
        else:
            self.models[prepared.model] = self.models.get(prepared.model, 0) + 1
        if self._spool is not None and not self.problems:
            model = body.get("model")
            self._spool.add(number, model if isinstance(model, str) else "", *row)

    def refused_row(self, line: SpooledLine, error: Exception) -> tuple[bytes, bytes]:
        """What is stored of a line that Postgres refuses: that it failed."""
        self.defects += 1
        log.error("postgres refused a line", batch=self._batch["id"], line=line.number, error=repr(error))
        custom_id = next(name for name, number in self._seen.items() if number == line.number)
        unprepared = Unprepared({"model": line.model})
        return self._row(line.number, custom_id, unprepared, (LineDefective.code, NOT_STORABLE))

    def _note(self, number: int, error: Exception) -> None:
        self.defects += 1
        self._defect = error
        if self.defects <= DEFECTS_LOGGED:
            log.exception(
                "a defect of the service or of a chat template failed a line", batch=self._batch["id"], line=number
            )

    def _row(
        self, number: int, custom_id: str, line: PreparedLine, failed: tuple[str, str] | None = None
    ) -> tuple[bytes, bytes]:
        """A line's context and result as they are stored; with the code and message of an error, it has failed."""
        id_, batch = uuid7(), self._batch
        ticket = Submission(
            id_,
            uuid7(),
            line.model,
            line.engine_parameters,
            PRIORITY,
            self._rank + timedelta(microseconds=self._place(line.prompt)),
            time_of(id_),
            expires_at=batch["expires_at"],
            client_reference=custom_id,
            owner_id=batch["owner_id"],
            key_id=batch["key_id"],
            task=task_of(line.engine_parameters),
            kind=line.kind,
            request=line.request,
            webhook=line.webhook,
            kept=line.kept,
            wish=batch["wish"],
        )
        return context_line(ticket, line.prompt), result_line(ticket, batch["id"], number, failed)

    def _place(self, prompt: Prompt) -> int:
        """Of the beginning of the prompt among all: no more than the lines there are, so within 50 milliseconds."""
        beginning = beginning_of(prompt)
        return self._beginnings.setdefault(beginning, len(self._beginnings)) if beginning else 0

    def _request(self, number: int, line: bytes) -> tuple[str, dict[str, Any]]:
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
        custom_id, url, body = request["custom_id"], request["url"], request["body"]
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_CUSTOM_ID or "\x00" in custom_id:
            raise LineError(
                "invalid_custom_id", f"custom_id: must be text of 1 to {LONGEST_CUSTOM_ID} characters", "custom_id"
            )
        first = self._seen.setdefault(custom_id, number)
        if first != number:
            shown = custom_id[:LONGEST_VALUE_SHOWN]
            raise LineError(
                "duplicate_custom_id",
                f"custom_id: {shown!r} is on line {first} and again on line {number}; each line needs its own",
                "custom_id",
            )
        if request["method"] != "POST":
            raise LineError("invalid_method", "method: must be POST", "method")
        if url != self._batch["endpoint"]:
            raise LineError(
                "mismatched_endpoint", f"url: must be {self._batch['endpoint']}, as the batch has it", "url"
            )
        if not isinstance(body, dict):
            raise LineError("invalid_request", "body: must be an object", "body")
        if body.get("stream"):
            raise LineError("unsupported_parameter", "stream: a batch is not streamed; leave it out", "body.stream")
        return custom_id, body

    async def _prepared(self, body: dict[str, Any]) -> PreparedLine:
        model = body.get("model")
        known = self._unknown_models.get(model) if isinstance(model, str) else None
        try:
            if known is not None:
                raise known
            prepared = await self._prepare(self._caller, self._batch["endpoint"], body)
            self._caller.require_model(prepared.model, prepared.engine_parameters.get("lora_name"))
            return prepared
        except DatabaseUnavailable:
            raise
        except AppError as error:
            if isinstance(error, ModelNotFound) and isinstance(model, str):
                self._unknown_models[model] = error
            field = error.errors[0]["field"] if error.errors else None
            raise LineError(error.code, error.detail, f"body.{field}" if field else "body") from None


def _internal() -> dict[str, Any]:
    message = "The service failed on this batch as often as it tried to load it. The cause is in its log."
    return {"line": None, "code": "internal_error", "message": message, "param": None}


def beginning_of(prompt: Prompt) -> str:
    """A digest of what a chat is told before anybody says something; empty where there is nothing."""
    told = list(takewhile(lambda message: message["role"] in INSTRUCTING, prompt.messages or ()))
    return sha256(to_json(told)).hexdigest() if told else ""
