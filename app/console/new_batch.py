"""A new batch from a file: JSON Lines, or a CSV and a template. What is wrong is said first; nothing is kept before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Request, Response, UploadFile

from app.api.dependencies import caller_of, services_of
from app.api.openai.files import content_of
from app.api.security import SUBMIT, UPLOAD, UPLOAD_WORK
from app.console.asking import Text, Word, number_of, text_models
from app.console.batches import to_batch
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.render import html
from app.errors import AppError, BodyTooLarge, invalid
from app.openai.batch_lines import endpoint_of, preparing
from app.openai.csv_requests import Asking, CsvRequests
from app.services.batch_checks import Checked
from app.services.files import INPUT
from app.services.lines import lines_of
from app.services.wishes import ANY

PROMPTS_SHOWN = 3
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
FIELDS = ("model", "template", "system", "max_tokens", "temperature")

router = APIRouter(prefix=f"{PREFIX}/batches", route_class=PageRoute, include_in_schema=False)

Sent = Annotated[UploadFile | None, File()]
Given = Mapping[str, str]


def _given(
    model: Word = "", template: Text = "", system: Text = "", max_tokens: Word = "", temperature: Word = ""
) -> Given:
    return dict(zip(FIELDS, (model, template, system, max_tokens, temperature), strict=True))


Asked = Annotated[Given, Depends(_given)]


class Draft:
    """A file as a batch: its lines, which can be read again and again, and what the check said of them."""

    def __init__(self, name: str, endpoint: str, lines: Callable[[], AsyncIterator[bytes]], checked: Checked) -> None:
        self.name = name
        self.endpoint = endpoint
        self.lines = lines
        self.checked = checked
        # Of a CSV, the first prompts.
        self.prompts: list[str] = []
        self.unit = "line"


@router.get("/new", dependencies=[SUBMIT])
async def new(request: Request, model: str = "") -> Response:
    return await _form(request, {"model": model})


@router.post("/check", dependencies=[UPLOAD])
async def check(request: Request, given: Asked, file: Sent = None) -> Response:
    """Says what would become of the file; nothing of it is kept."""
    try:
        draft = await _draft(request, file, given)
    except AppError as error:
        # That a file is refused is what was asked for.
        return await _refused(request, given, error, 200)
    return await _form(request, given, draft=draft)


@router.post("", dependencies=[UPLOAD_WORK])
async def accepted(request: Request, given: Asked, file: Sent = None) -> Response:
    """Begins the batch, unless a line of it is not valid."""
    services, caller = services_of(request), caller_of(request)
    try:
        draft = await _draft(request, file, given)
        if draft.checked.problem_count:
            return await _form(request, given, draft=draft, status=422)
        stored, _ = await services.files.create(caller, INPUT, draft.name, None, draft.lines)
        row, _ = await services.batches.create(caller, stored["id"], draft.endpoint, None, None, ANY, None)
    except AppError as error:
        return await _refused(request, given, error)
    return to_batch(request, row["id"])


async def _draft(request: Request, file: UploadFile | None, given: Given) -> Draft:
    """Raises InvalidRequest where there is nothing to check line by line."""
    services, caller = services_of(request), caller_of(request)
    if file is None or not file.filename:
        raise invalid("file", "choose a file: .jsonl with a request on each line, or .csv with a header")
    if not file.size:
        raise invalid("file", "is empty")
    most = services.settings.max_file_bytes
    if file.size > most:
        raise BodyTooLarge(f"The file is larger than {most:,} bytes; make several of it, or raise MAX_FILE_BYTES.")
    name = file.filename.replace("\x00", "")
    if name.lower().endswith(WORKBOOKS):
        raise invalid("file", "is a workbook of a spreadsheet program: save its table as CSV in UTF-8, and choose that")
    prepare = preparing(replace(services, images=None))
    if name.lower().endswith((".csv", ".tsv")):
        table = CsvRequests(file.file, _asking(given), services.settings.max_body_bytes, most)
        endpoint, lines = endpoint_of(b""), table.lines
        count, shown = await table.problems()
        checked = Checked(0, {}, 0, shown, count)
        if not count:
            checked = await services.batch_checks.check(caller, endpoint, lines(), file.size, prepare)
        draft = Draft(f"{name[:200].rpartition('.')[0]}.jsonl", endpoint, lines, checked)
        draft.prompts, draft.unit = table.prompts(PROMPTS_SHOWN), "row"
        return draft

    def content() -> AsyncIterator[bytes]:
        return content_of(file)

    endpoint = endpoint_of(await _first_line(content(), services.settings.max_body_bytes))
    checked = await services.batch_checks.check(caller, endpoint, content(), file.size, prepare)
    return Draft(name, endpoint, content, checked)


async def _first_line(parts: AsyncIterator[bytes], longest: int) -> bytes:
    async for _, line in lines_of(parts, longest):
        if line is None or line.strip():
            return line or b""
    return b""


def _asking(given: Given) -> Asking:
    if not given["model"]:
        raise invalid("model", "choose a model for the prompts of the table")
    kinds: tuple[tuple[str, Any], ...] = (("max_tokens", int), ("temperature", float))
    parameters = {name: number_of(name, given[name], kind) for name, kind in kinds if given[name].strip()}
    return Asking(given["model"], given["template"], given["system"], parameters)


async def _refused(request: Request, given: Given, error: AppError, status: int | None = None) -> Response:
    if error.status >= 500:
        raise error
    return await _form(request, given, refused=error, status=status or error.status)


async def _form(
    request: Request,
    given: Given,
    *,
    draft: Draft | None = None,
    refused: AppError | None = None,
    status: int = 200,
) -> Response:
    values = {
        "models": await text_models(request),
        "given": dict.fromkeys(FIELDS, "") | dict(given),
        "draft": draft,
        "refused": refused,
        "most_bytes": services_of(request).settings.max_file_bytes,
        "form": form_token_of(request),
    }
    return with_cookie(request, html(request.scope, "new_batch.html", status, **values))
