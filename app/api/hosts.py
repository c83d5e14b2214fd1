from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request

from app.api.dependencies import caller_of, problems, services_of
from app.api.security import ADMIN, GuardedRoute
from app.services.audit import actor_of
from app.services.hosts import CapacityView, HostDetail, HostView

router = APIRouter(tags=["hosts"], route_class=GuardedRoute, dependencies=[ADMIN])

MOST_HOSTS = 200


@router.get("/hosts/", response_model=list[HostView], responses=problems(422))
async def list_hosts(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MOST_HOSTS)] = 50,
    after: Annotated[UUID | None, Query(description="the id of the last host of the page before")] = None,
) -> object:
    """Hosts that are or were rented, newest first; for the scope admin."""
    return await services_of(request).hosts.list(limit, after)


@router.get("/hosts/{host_id}", response_model=HostDetail, responses=problems(404, 422))
async def get_host(host_id: UUID, request: Request) -> object:
    """One host: its state, its life and its cost; for the scope admin."""
    return await services_of(request).hosts.get(host_id)


@router.post("/hosts/{host_id}/drain", response_model=HostDetail, responses=problems(404, 409, 422))
async def drain_host(host_id: UUID, request: Request) -> object:
    """It gets nothing more, finishes what it has, and is destroyed; for the scope admin."""
    return await services_of(request).hosts.drain(host_id, actor_of(caller_of(request)))


@router.post("/hosts/{host_id}/destroy", response_model=HostDetail, responses=problems(404, 409, 422))
async def destroy_host(host_id: UUID, request: Request) -> object:
    """Ends it now; what runs there is run again elsewhere. For the scope admin."""
    return await services_of(request).hosts.destroy(host_id, actor_of(caller_of(request)))


@router.post("/hosts/{host_id}/lock", response_model=HostDetail, responses=problems(404, 409, 422))
async def lock_host(host_id: UUID, request: Request) -> object:
    """It is not ended for want of work, until it is unlocked; for the scope admin."""
    return await services_of(request).hosts.lock(host_id, True, actor_of(caller_of(request)))


@router.post("/hosts/{host_id}/unlock", response_model=HostDetail, responses=problems(404, 409, 422))
async def unlock_host(host_id: UUID, request: Request) -> object:
    """It may be ended for want of work again; for the scope admin."""
    return await services_of(request).hosts.lock(host_id, False, actor_of(caller_of(request)))


@router.get("/capacity/", response_model=CapacityView, responses=problems())
async def get_capacity(request: Request) -> object:
    """What the controller of hosts decides, and why: demand, plan and budget of each pool; for the scope admin."""
    return await services_of(request).hosts.capacity()
