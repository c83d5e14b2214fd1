from uuid import UUID

from fastapi import APIRouter, Request

from app.api.dependencies import caller_of, problems, services_of
from app.api.security import ADMIN, GuardedRoute
from app.services.audit import actor_of
from app.services.servers import ServerChange, ServerCreate, ServerView

router = APIRouter(prefix="/servers", tags=["servers"], route_class=GuardedRoute, dependencies=[ADMIN])


@router.get("/", response_model=list[ServerView], responses=problems())
async def list_servers(request: Request) -> object:
    """All servers, oldest first; for the scope admin."""
    return await services_of(request).servers.list()


@router.post("/", status_code=201, response_model=ServerView, responses=problems(400, 409, 413, 415, 422))
async def add_server(body: ServerCreate, request: Request) -> object:
    """Adds a server, which every process uses within a second; for the scope admin."""
    return await services_of(request).servers.add(body, actor_of(caller_of(request)))


@router.get("/{server_id}", response_model=ServerView, responses=problems(404, 422))
async def get_server(server_id: UUID, request: Request) -> object:
    """One server: its settings, its state, and what was done there; for the scope admin."""
    return await services_of(request).servers.get(server_id)


@router.patch("/{server_id}", response_model=ServerView, responses=problems(400, 404, 409, 413, 415, 422))
async def change_server(server_id: UUID, body: ServerChange, request: Request) -> object:
    """Changes the fields that are given, `wanted` to drain or disable it; for the scope admin."""
    return await services_of(request).servers.change(server_id, body, actor_of(caller_of(request)))


@router.delete("/{server_id}", status_code=204, responses=problems(404, 409, 422))
async def remove_server(server_id: UUID, request: Request) -> None:
    """Takes a server out; what it has in flight is finished. For the scope admin."""
    await services_of(request).servers.remove(server_id, actor_of(caller_of(request)))
