"""Comparing: one prompt to several models or servers, the answers side by side as they grow, and which was the best."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from app.api.comparison_schemas import MAX_ENTRIES, ComparisonCreate
from app.api.comparisons import send_comparison
from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import READ, SUBMIT, WORK
from app.console.asking import LONGEST, Text, Word, number_of, text_models
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.following import Heard, followed
from app.console.pages import event_stream, page, wants_events
from app.console.render import HEADERS, html, state_of
from app.errors import AppError, NotFound, invalid
from app.openai.requests import checked
from app.queue.ticket import Status
from app.services.comparison_streams import ComparisonStream, Part, Position, Signal
from app.services.comparisons import Comparison
from app.services.pages import Window
from app.services.picks import MOST_SUMMED
from app.services.streams import End, Event
from app.services.wishes import Wish

FORM, TEMPLATE = "compare.html", "comparison.html"
REFERENCE = "console"
SHOWN = 30

router = APIRouter(prefix=f"{PREFIX}/compare", route_class=PageRoute, include_in_schema=False)

# How many tokens an answer has so far, and how many a second since its first one.
Progress = tuple[int, float]
Words = Annotated[list[str], Form(max_length=MAX_ENTRIES)]


@router.get("", dependencies=[READ])
async def compare(request: Request, again: UUID | None = None) -> Response:
    """The form, filled in as the comparison `again` was asked, and the newest comparisons."""
    given = {} if again is None else await _asked_before(request, again)
    return await _form(request, given)


@router.post("", dependencies=[WORK])
async def compared(
    request: Request,
    message: Text = "",
    system: Text = "",
    plain: Word = "",
    max_tokens: Word = "",
    model: Words = [],  # noqa: B006 - FastAPI copies it
    server: Words = [],  # noqa: B006
    temperature: Words = [],  # noqa: B006
) -> Response:
    entries = [
        {"model": name, "server": where, "temperature": warmth}
        for name, where, warmth in _columns(model, server, temperature)
        if name
    ]
    given = {"message": message, "system": system, "plain": plain, "max_tokens": max_tokens, "entries": entries}
    try:
        body = checked(ComparisonCreate, _body(given))
        id_, _ = await send_comparison(services_of(request), caller_of(request), body)
    except AppError as error:
        if error.status >= 500:
            raise
        return await _form(request, given, error)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/compare/{id_}", 303, HEADERS)


def _columns(model: list[str], server: list[str], temperature: list[str]) -> list[tuple[str, str, str]]:
    def at(texts: list[str], place: int) -> str:
        return texts[place].strip() if place < len(texts) else ""

    return [(name, at(server, place), at(temperature, place)) for place, name in enumerate(model)]


def _body(given: dict[str, Any]) -> dict[str, Any]:
    """The request as the API takes it; raises InvalidRequest."""
    message, system = given["message"], given["system"]
    if not message.strip():
        raise invalid("message", "write what you want to ask")
    if len(given["entries"]) < 2:
        raise invalid("model", "choose at least two; the same one may stand there twice")
    entries = []
    for place, each in enumerate(given["entries"]):
        entry: dict[str, Any] = {"model": each["model"]}
        if each["server"]:
            entry["server"] = each["server"]
        if each["temperature"]:
            warmth = number_of(f"entries.{place}.temperature", each["temperature"], float)
            entry["parameters"] = {"temperature": warmth}
        entries.append(entry)
    body: dict[str, Any] = {"entries": entries, "stream": True, "client_reference": REFERENCE}
    if given["max_tokens"].strip():
        body["parameters"] = {"max_tokens": number_of("max_tokens", given["max_tokens"], int)}
    if given["plain"]:
        if system.strip():
            raise invalid("system", "is for chats: write it into the message, or let the models' templates be used")
        return body | {"content": message}
    said = [{"role": "system", "content": system}] if system.strip() else []
    return body | {"messages": [*said, {"role": "user", "content": message}]}


async def _asked_before(request: Request, id_: UUID) -> dict[str, Any]:
    services, caller = services_of(request), caller_of(request)
    comparison = await services.comparisons.get(caller, id_)
    prompt = await services.contexts.get(caller, comparison.row["context_id"])
    said = prompt["messages"] or []
    texts = {message["role"]: message["content"] for message in said if isinstance(message["content"], str)}
    entries = []
    for column in _answers(comparison, None, {}):
        row = column["row"] or {}
        wish = Wish.of(row.get("wish", ""))
        entries.append(
            {"model": column["model"], "server": wish.server or "", "temperature": row.get("temperature") or ""}
        )
    return {
        "message": prompt["content"] if not said else texts.get("user", ""),
        "system": texts.get("system", ""),
        "plain": "" if said else "on",
        "entries": entries,
    }


async def _form(request: Request, given: Mapping[str, Any], refused: AppError | None = None) -> Response:
    services, caller = services_of(request), caller_of(request)
    newest, _ = await services.comparisons.page(caller, Window(SHOWN))
    asked = {"message": "", "system": "", "plain": "", "max_tokens": "", "entries": []} | dict(given)
    rows = [*asked["entries"], *[dict.fromkeys(("model", "server", "temperature"), "")] * 2]
    values = {
        "given": asked,
        "rows": rows[: max(2, len(asked["entries"]))],
        "most": MAX_ENTRIES,
        "longest": LONGEST,
        "models": await text_models(request),
        "servers": sorted(server.title for server in services.fleet.servers),
        "newest": newest,
        "prompts": await services.ticket_list.prompts(caller, [each.row["context_id"] for each in newest]),
        "refused": refused,
        "form": form_token_of(request),
    }
    return with_cookie(request, html(request.scope, FORM, 200 if refused is None else refused.status, **values))


@router.get("/picks", dependencies=[READ])
async def picks(request: Request) -> Response:
    """How often each model was picked, and the newest picks."""
    services, caller = services_of(request), caller_of(request)

    async def gather() -> dict[str, Any]:
        (models, servers), newest = await asyncio.gather(
            services.picks.wins(caller), services.picks.page(caller, Window(SHOWN))
        )
        prompts = await services.ticket_list.prompts(caller, [row["context_id"] for row in newest.rows])
        return {
            "models": models,
            "servers": servers,
            "newest": newest.rows,
            "prompts": prompts,
            "most": MOST_SUMMED,
        }

    return await page(request, "picks.html", gather)


@router.get("/{comparison_id}", dependencies=[READ])
async def comparison(request: Request, comparison_id: UUID) -> Response:
    async def gather() -> dict[str, Any]:
        return await _shown(request, comparison_id, {})

    if wants_events(request):
        return event_stream(_followed(request, comparison_id))
    return await page(request, TEMPLATE, gather)


@router.post("/{comparison_id}/pick", dependencies=[SUBMIT])
async def pick(request: Request, comparison_id: UUID, result: Word = "") -> Response:
    """`result` is the id of the best, `none` where none is, and nothing to take a pick back."""
    service, caller = services_of(request).picks, caller_of(request)
    if result:
        await service.set(caller, comparison_id, None if result == "none" else _id("result", result))
    else:
        await service.remove(caller, comparison_id)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/compare/{comparison_id}", 303, HEADERS)


@router.post("/{comparison_id}/cancel", dependencies=[SUBMIT])
async def cancel(request: Request, comparison_id: UUID) -> Response:
    await services_of(request).comparisons.cancel(caller_of(request), comparison_id)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/compare/{comparison_id}", 303, HEADERS)


def _id(name: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise invalid(name, f"{text[:40]!r} is no UUID") from None


async def _shown(request: Request, id_: UUID, progress: Mapping[int, Progress]) -> dict[str, Any]:
    services, caller = services_of(request), caller_of(request)
    comparison = await services.comparisons.get(caller, id_)
    pick = await services.picks.get(caller, id_)
    try:
        prompt = await services.contexts.get(caller, comparison.row["context_id"])
    except NotFound:
        # The retention takes it with the results.
        prompt = {"content": "", "messages": None}
    return {
        "row": comparison.row,
        "state": comparison.status.value,
        "final": comparison.status is not Status.PENDING,
        "cancelling": all(row["status"] != Status.PENDING or row["cancel_requested_at"] for row in _rows(comparison)),
        "prompt": prompt,
        "columns": _answers(comparison, pick, progress),
        "pick": pick,
        "pickable": any(row["status"] == Status.COMPLETED for row in _rows(comparison)),
    }


def _rows(comparison: Comparison) -> list[Mapping[str, Any]]:
    return list(comparison.results.values())


def _answers(
    comparison: Comparison, pick: Mapping[str, Any] | None, progress: Mapping[int, Progress]
) -> list[dict[str, Any]]:
    """The columns; `progress` is that of those that still run."""
    columns = []
    for place, (id_, model) in enumerate(zip(comparison.row["result_ids"], comparison.row["models"], strict=True)):
        row = comparison.results.get(id_)
        tokens, speed = progress.get(place, (None, None))
        if row is not None and row["seconds"]:
            tokens = row["completion_tokens"]
            speed = None if tokens is None else tokens / row["seconds"]
        columns.append(
            {
                "key": place,
                "id": id_,
                "model": model,
                "row": row,
                "wish": None if row is None else Wish.of(row["wish"]),
                "state": "removed" if row is None else state_of(row),
                "final": row is None or Status(row["status"]).final,
                "tokens": tokens,
                "speed": speed,
                "picked": pick is not None and pick["result_id"] == id_,
            }
        )
    return columns


def _followed(request: Request, id_: UUID) -> AsyncGenerator[bytes]:
    """The answers as they come, each `text` saying whose it is."""
    services = services_of(request)
    heard = _Columns()

    async def gather() -> dict[str, Any]:
        return await _shown(request, id_, heard.progress())

    async def hear(values: dict[str, Any]) -> Heard:
        columns = values["columns"]
        stream = ComparisonStream(services.streams, caller_of(request), [column["id"] for column in columns])
        await stream.open([Position(ended=column["final"]) for column in columns])
        heard.stream = stream
        return heard

    return followed(request, TEMPLATE, gather, hear)


class _Columns(Heard):
    """The first choice of each answer; `stream` is there before it is listened to."""

    stream: ComparisonStream

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[int, dict[str, Any]] = {}
        # When the first token of an answer came, and how many there are.
        self._began: dict[int, float] = {}
        self._tokens: dict[int, int] = {}

    async def _listen(self) -> None:
        async with aclosing(self.stream.parts()) as parts:
            async for part in parts:
                self._add(part)
                self._moved.set()

    def _add(self, part: Part) -> None:
        place = part.place
        match part.item:
            case Event() as event:
                for delta in event.deltas:
                    if delta.index == 0:
                        self._text(place)["text"] += delta.text
                        self._began.setdefault(place, asyncio.get_running_loop().time())
                        self._tokens[place] = delta.tokens or 0
            case Signal.RESTARTED:
                self._texts[place] = {"of": str(place), "text": "", "anew": True}
                self._began.pop(place, None)
            case End() | Signal.REMOVED:
                self.ended = True

    def _text(self, place: int) -> dict[str, Any]:
        return self._texts.setdefault(place, {"of": str(place), "text": "", "anew": False})

    def progress(self) -> dict[int, Progress]:
        """Of each answer that has begun."""
        now = asyncio.get_running_loop().time()
        return {
            place: (self._tokens[place], self._tokens[place] / (now - began))
            for place, began in self._began.items()
            if self._tokens[place] and now > began
        }

    def _take(self) -> list[dict[str, Any]]:
        texts, self._texts = self._texts, {}
        return list(texts.values())
