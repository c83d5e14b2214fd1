"""What happens now."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import READ
from app.console.charts import Line, line_chart
from app.console.entrance import PREFIX, PageRoute
from app.console.host_pages import pool_shown
from app.console.pages import page
from app.services.overview import MINUTES, Concern

router = APIRouter(prefix=PREFIX, route_class=PageRoute, include_in_schema=False, dependencies=[READ])
ENDS = (f"{MINUTES} minutes ago", "now")


@router.get("")
async def without_slash(request: Request) -> Response:
    return RedirectResponse(f"{root_of(request)}{PREFIX}/", 308)


@router.get("/")
async def overview(request: Request) -> Response:
    async def gather() -> dict[str, Any]:
        seen = await services_of(request).overviews.look(caller_of(request))
        tickets = [Line("completed", "good", seen.completed), Line("failed", "bad", seen.failed)]
        return {
            "seen": seen,
            "path_to": path_to,
            "pools": [] if seen.capacity is None else [pool_shown(pool) for pool in seen.capacity.pools],
            "tickets_chart": line_chart("Tickets a minute", tickets, ENDS),
            "tokens_chart": line_chart("Tokens a minute", [Line("tokens", "plain", seen.tokens)], ENDS),
        }

    return await page(request, "overview.html", gather)


def path_to(concern: Concern) -> str:
    """The page, below the console, that tells more of it."""
    if concern.about == "pool":
        return "/hosts"
    folder = {"model": "models", "server": "servers", "batch": "batches"}[concern.about]
    return f"/{folder}/{quote(concern.subject)}"
