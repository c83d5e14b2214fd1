"""What happens now."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from markupsafe import Markup

from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import READ
from app.console.charts import Line, line_chart
from app.console.entrance import PREFIX, PageRoute
from app.console.host_pages import budget_bars, pool_shown
from app.console.pages import page
from app.services.overview import Concern, Span

router = APIRouter(prefix=PREFIX, route_class=PageRoute, include_in_schema=False, dependencies=[READ])
# Of the lines of models.
KINDS = ("plain", "warn", "other")
LONGEST_NAME = 20


@router.get("")
async def without_slash(request: Request) -> Response:
    return RedirectResponse(f"{root_of(request)}{PREFIX}/", 308)


@router.get("/")
async def overview(request: Request) -> Response:
    async def gather() -> dict[str, Any]:
        seen = await services_of(request).overviews.look(caller_of(request))
        return {
            "seen": seen,
            "path_to": path_to,
            "pools": [] if seen.capacity is None else [pool_shown(pool) for pool in seen.capacity.pools],
            "budgets": [] if seen.capacity is None else budget_bars(seen.capacity),
            "charts": {
                "hour": charts_of(seen.hour, ("an hour ago", "now")),
                "day": charts_of(seen.day, ("a day ago", "now")),
            },
        }

    return await page(request, "overview.html", gather)


def charts_of(span: Span, ends: tuple[str, str]) -> tuple[Markup, Markup]:
    """Tickets, and tokens by model: the busiest models, and the others together."""
    tickets = [
        Line("completed", "good", span.a_second(span.completed)),
        Line("failed", "bad", span.a_second(span.failed)),
    ]
    if span.submitted_known:
        tickets.insert(0, Line("submitted", "plain", span.a_second(span.submitted)))
    busiest = sorted(span.tokens, key=lambda model: (-sum(span.tokens[model]), model))
    tokens = [
        Line(shortened(model), kind, span.a_second(span.tokens[model]))
        for model, kind in zip(busiest, KINDS, strict=False)
    ]
    if others := busiest[len(KINDS) :]:
        summed = [sum(values) for values in zip(*(span.tokens[model] for model in others), strict=True)]
        tokens.append(Line("others", "dim", span.a_second(summed)))
    return line_chart("Tickets a second", tickets, ends, "/s"), line_chart("Tokens a second", tokens, ends, "/s")


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def path_to(concern: Concern) -> str:
    """The page, below the console, that tells more of it."""
    if concern.about == "pool":
        return "/hosts"
    if concern.about == "dispatchers":
        return "/logs?process=dispatcher"
    folder = {"model": "models", "server": "servers", "batch": "batches"}[concern.about]
    return f"/{folder}/{quote(concern.subject)}"
