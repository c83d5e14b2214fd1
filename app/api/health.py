from collections.abc import MutableMapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from app.api.dependencies import services_of
from app.api.schemas import Live, Ready, ServerHealth, SetAsideModel, Version
from app.api.security import OPEN, GuardedRoute
from app.fleet.lanes import Server
from app.queue.set_aside import SetAside

# What machines ask every few seconds.
UNTRACED = frozenset({"/health", "/tgi/health", "/api/health", "/health/live", "/health/ready", "/ping", "/metrics"})

router = APIRouter(tags=["health"], route_class=GuardedRoute, dependencies=[OPEN])


@router.get("/health/live", response_model=Live)
async def live() -> object:
    """The process runs."""
    return Live(status="live")


@router.get("/health/ready", response_model=Ready, responses={503: {"model": Ready}})
async def ready(request: Request, response: Response) -> object:
    """Postgres can be reached and is migrated. Triton's state is reported and changes nothing."""
    database = await services_of(request).health.database()
    is_ready = database.reachable and database.migrated
    if not is_ready:
        response.status_code = 503
    services = services_of(request)
    return Ready(
        status="ready" if is_ready else "unready",
        database=database.detail or "ok",
        triton=[_health_of(server, services.catalog.set_aside_on(server)) for server in services.fleet.servers],
    )


@router.get("/health", response_class=Response, responses={503: {"description": "Not ready"}})
async def health(request: Request) -> Response:
    """200 with no body when ready, else 503, as clients of vLLM expect; `/health/ready` says why."""
    return await short_health(request)


@router.get("/ping", response_class=Response, responses={503: {"description": "Not ready"}})
@router.post("/ping", response_class=Response, responses={503: {"description": "Not ready"}})
async def ping(request: Request) -> Response:
    """The same as `/health`, as SageMaker asks it."""
    return await short_health(request)


@router.get("/version", response_model=Version)
async def version(request: Request) -> object:
    """The version of this service."""
    return Version(version=request.app.version)


def is_untraced(scope: MutableMapping[str, Any]) -> bool:
    path: str = scope.get("path", "")
    return path.removeprefix(scope.get("root_path", "")) in UNTRACED


async def short_health(request: Request) -> Response:
    """200 or 503, with no body."""
    return Response(status_code=200 if await is_ready(request) else 503)


async def is_ready(request: Request) -> bool:
    """Whether Postgres can be reached and is migrated."""
    database = await services_of(request).health.database()
    return database.reachable and database.migrated


def _health_of(server: Server, set_aside: list[SetAside]) -> ServerHealth:
    down = {row.model for row in set_aside}
    ready = (name for name, model in server.models.items() if model.state == "ready" and name not in down)
    return ServerHealth(
        url=server.url,
        name=server.name,
        up=server.up,
        reason=server.reason or None,
        ready_models=sorted(ready) if server.up else [],
        set_aside=[SetAsideModel(**asdict(row)) for row in set_aside],
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics of this process, and of the queue."""
    await services_of(request).backlog.refresh()
    return Response(await run_in_threadpool(generate_latest), media_type=CONTENT_TYPE_LATEST)
