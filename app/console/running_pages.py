"""How the service is run: who did what, what its processes log, what they are set to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Form, Path, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import ADMIN
from app.console.entrance import PREFIX, PageRoute, form_token_of, with_cookie
from app.console.pages import page
from app.console.render import HEADERS, html
from app.errors import AppError, InvalidRequest, invalid
from app.queue.audit import Action
from app.queue.log_lines import MOST_KEPT
from app.services.audit import actor_of
from app.services.pages import Window
from app.services.process_logs import Process
from app.storable import StorableText

PER_PAGE = 50
LINES_PER_PAGE = 200
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# What a setting is chosen from; others are typed.
CHOICES = {"LOG_LEVEL": LEVELS, "LOG_KEPT_LEVEL": (*LEVELS, "NONE")}

router = APIRouter(prefix=PREFIX, route_class=PageRoute, include_in_schema=False, dependencies=[ADMIN])

Name = Annotated[StorableText, Path(max_length=255)]
Word = Annotated[StorableText, Query(max_length=255)]


@router.get("/audit")
async def audit(request: Request, action: Word = "", older_than: UUID | None = None) -> Response:
    if action and action not in list(Action):
        raise invalid("action", f"is one of {', '.join(Action)}")

    async def gather() -> dict[str, Any]:
        window = Window(limit=PER_PAGE, after=older_than)
        found = await services_of(request).audit.page(Action(action) if action else None, window)
        return {"found": found, "actions": list(Action), "given": {"action": action}, "older_than": older_than}

    return await page(request, "audit.html", gather)


@router.get("/logs")
async def logs(
    request: Request, process: Word = "", level: Word = "", text: Word = "", older_than: int | None = None
) -> Response:
    if process and process not in list(Process):
        raise invalid("process", f"is one of {', '.join(Process)}")
    if level and level not in LEVELS:
        raise invalid("level", f"is one of {', '.join(LEVELS)}")
    if older_than is not None and not 0 < older_than < 2**63:
        raise invalid("older_than", "is the number of a line")

    async def gather() -> dict[str, Any]:
        services = services_of(request)
        least = logging.getLevelNamesMapping()[level or "DEBUG"]
        kind = Process(process) if process else None
        return {
            "found": await services.process_logs.page(kind, least, text, LINES_PER_PAGE, older_than),
            "processes": list(Process),
            "levels": LEVELS,
            "level_of": logging.getLevelName,
            "kept": services.settings.log_kept_level,
            "most_kept": MOST_KEPT,
            "given": {"process": process, "level": level, "text": text},
            "older_than": older_than,
        }

    return await page(request, "logs.html", gather)


@router.get("/settings")
async def settings(request: Request, text: Word = "") -> Response:
    """Those whose names and meanings have all the words of `text`."""
    return await _settings(request, text=text)


@router.post("/settings/{setting}")
async def changed(request: Request, setting: Name, value: Annotated[str, Form(max_length=1000)] = "") -> Response:
    try:
        await services_of(request).changed_settings.change(setting, value, actor_of(caller_of(request)))
    except InvalidRequest as error:
        return await _settings(request, {setting: value}, error)
    return _to_setting(request, setting)


@router.post("/settings/{setting}/reset")
async def reset(request: Request, setting: Name) -> Response:
    await services_of(request).changed_settings.reset(setting, actor_of(caller_of(request)))
    return _to_setting(request, setting)


async def _settings(
    request: Request, given: Mapping[str, str] | None = None, refused: AppError | None = None, text: str = ""
) -> Response:
    """`given` is what was typed, by the setting's name."""
    services = services_of(request)
    words = text.lower().split()
    listed = await services.changed_settings.list()
    values = {
        "settings": [each for each in listed if all(word in f"{each.name} {each.meaning}".lower() for word in words)],
        "text": text,
        "meaning": await services.meaning.state(),
        "choices": CHOICES,
        "given": given or {},
        "refused": refused,
        "form": form_token_of(request),
    }
    status = 200 if refused is None else refused.status
    return with_cookie(request, html(request.scope, "settings.html", status, **values))


def _to_setting(request: Request, name: str) -> Response:
    return RedirectResponse(f"{root_of(request)}{PREFIX}/settings#{quote(name)}", 303, HEADERS)
