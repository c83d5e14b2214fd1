"""Rented hosts: pools with their budgets and plans, each host's life and cost, and what can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from markupsafe import Markup

from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import ADMIN
from app.console.charts import Share, share_bar
from app.console.entrance import PREFIX, PageRoute
from app.console.pages import page
from app.console.render import HEADERS, duration
from app.services.audit import actor_of
from app.services.hosts import CapacityView, HostEvent, HostView, PoolView, budget_uses

PER_PAGE = 50
WINDOWS = {"hour": "this hour", "day": "today", "month": "this month", "total": "in all"}
# The class that the time in a state is drawn by.
KINDS = {
    "wanted": "dim",
    "creating": "dim",
    "booting": "dim",
    "deploying": "plain",
    "loading": "plain",
    "ready": "good",
    "draining": "warn",
    "destroying": "bad",
}

router = APIRouter(prefix=f"{PREFIX}/hosts", route_class=PageRoute, include_in_schema=False, dependencies=[ADMIN])


class Stage(NamedTuple):
    """Time in one state, in seconds."""

    state: str
    kind: str
    seconds: float


@router.get("")
async def hosts(request: Request, older_than: UUID | None = None) -> Response:
    services = services_of(request)

    async def gather() -> dict[str, Any]:
        found = list(await services.hosts.list(PER_PAGE + 1, older_than))
        capacity = await services.hosts.capacity()
        shown = found[:PER_PAGE]
        lives = await services.hosts.lives([host.id for host in shown])
        return {
            "capacity": capacity,
            "pools": [pool_shown(pool) for pool in capacity.pools],
            "budgets": budget_bars(capacity),
            "rate": capacity.spent["rate"],
            "today": capacity.spent["day"],
            "live": sum(pool.hosts for pool in capacity.pools),
            "rows": [(host, life_bar(stages_of(lives[host.id], host.ended_at))) for host in shown],
            "older_than": older_than,
            "next_after": shown[-1].id if len(found) > PER_PAGE else None,
        }

    return await page(request, "hosts.html", gather)


@router.get("/{host_id}")
async def host(request: Request, host_id: UUID) -> Response:
    async def gather() -> dict[str, Any]:
        found = await services_of(request).hosts.get(host_id)
        stages = stages_of(found.events, found.ended_at)
        return {"host": found, "stages": stages, "life": life_bar(stages), "why": why(found)}

    return await page(request, "host.html", gather)


@router.post("/{host_id}/drain")
async def drain(request: Request, host_id: UUID) -> Response:
    await services_of(request).hosts.drain(host_id, actor_of(caller_of(request)))
    return _to_host(request, host_id)


@router.post("/{host_id}/destroy")
async def destroy(request: Request, host_id: UUID) -> Response:
    await services_of(request).hosts.destroy(host_id, actor_of(caller_of(request)))
    return _to_host(request, host_id)


@router.post("/{host_id}/lock")
async def lock(request: Request, host_id: UUID) -> Response:
    await services_of(request).hosts.lock(host_id, True, actor_of(caller_of(request)))
    return _to_host(request, host_id)


@router.post("/{host_id}/unlock")
async def unlock(request: Request, host_id: UUID) -> Response:
    await services_of(request).hosts.lock(host_id, False, actor_of(caller_of(request)))
    return _to_host(request, host_id)


def _to_host(request: Request, id_: UUID) -> Response:
    return RedirectResponse(f"{root_of(request)}{PREFIX}/hosts/{id_}", 303, HEADERS)


def why(host: HostView) -> str:
    """What went wrong, what it does now, or why it is in its state."""
    return host.failure or host.progress or host.reason


def stages_of(events: Sequence[HostEvent], ended_at: datetime | None) -> list[Stage]:
    """How long it was in each state, one after the other; the last one goes on unless it has ended."""
    stages = []
    end = ended_at or datetime.now(UTC)
    began = [event for number, event in enumerate(events) if not number or events[number - 1].state != event.state]
    for number, event in enumerate(began):
        if event.state in KINDS:
            until = began[number + 1].at if number + 1 < len(began) else end
            stages.append(Stage(event.state, KINDS[event.state], max(0.0, (until - event.at).total_seconds())))
    return stages


def life_bar(stages: Sequence[Stage]) -> Markup:
    said = [f"{stage.state} {duration(stage.seconds)}" for stage in stages]
    shares = [Share(text, stage.kind, stage.seconds) for text, stage in zip(said, stages, strict=True)]
    return share_bar(", ".join(said), shares, sum(stage.seconds for stage in stages) or 1.0)


def pool_shown(pool: PoolView) -> dict[str, Any]:
    plan, settings = pool.plan, pool.settings
    market = plan.get("market") or {}
    return {
        "name": pool.name,
        "models": pool.models,
        "hosts": pool.hosts,
        "least": settings.get("min_hosts", 0),
        "most": settings.get("max_hosts"),
        "rate": pool.spent.get("rate", 0.0),
        "budgets": budget_bars(pool),
        "demand": plan.get("demand", []),
        "actions": plan.get("actions", []),
        "waiting": plan.get("waiting", []),
        "market_error": market.get("error"),
        "seen_at": pool.seen_at,
    }


def budget_bars(of: PoolView | CapacityView) -> list[dict[str, Any]]:
    """Of each of the limits what is spent, in words, in dollars and as a bar."""
    bars = []
    for use in budget_uses(of):
        kind = "bad" if use.spent >= use.limit else "warn" if use.near else "good"
        title = f"{WINDOWS[use.window]}: ${use.spent:,.2f} of ${use.limit:,.2f}"
        bar = share_bar(title, [Share(title, kind, use.spent)], use.limit)
        bars.append({"window": WINDOWS[use.window], "spent": use.spent, "limit": use.limit, "kind": kind, "bar": bar})
    return bars
