"""How the service is run: who did what, what its processes log, what they are set to."""

from __future__ import annotations

import logging
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from app.api.dependencies import services_of
from app.api.security import ADMIN
from app.console.entrance import PREFIX, PageRoute
from app.console.pages import page
from app.errors import invalid
from app.queue.audit import Action
from app.queue.log_lines import MOST_KEPT
from app.services.pages import Window
from app.services.process_logs import Process
from app.services.settings_list import listed
from app.storable import StorableText

PER_PAGE = 50
LINES_PER_PAGE = 200
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

router = APIRouter(prefix=PREFIX, route_class=PageRoute, include_in_schema=False, dependencies=[ADMIN])

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
async def settings(request: Request) -> Response:
    async def gather() -> dict[str, Any]:
        return {"settings": listed(services_of(request).settings)}

    return await page(request, "settings.html", gather)
