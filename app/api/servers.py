from uuid import UUID

from fastapi import APIRouter, Request, Response

from app.api.dependencies import caller_of, problems, services_of
from app.api.security import ADMIN, GuardedRoute
from app.services.audit import actor_of
from app.services.model_orders import ModelOrder, What
from app.services.servers import ModelName, ServerChange, ServerCreate, ServerView

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


ORDER = {202: {"model": ModelOrder, "description": "It goes on"}, **problems(404, 409, 422)}


@router.post("/{server_id}/models/{model_name}/load", response_model=ModelOrder, responses=ORDER)
async def load_model(server_id: UUID, model_name: ModelName, request: Request, response: Response) -> object:
    """Has a model of the server's repository loaded, or loaded anew; for the scope admin. Triton alone can do it.

    What takes longer than ten seconds goes on after the answer, 202.
    """
    return await _ordered(server_id, model_name, "load", request, response)


@router.post("/{server_id}/models/{model_name}/unload", response_model=ModelOrder, responses=ORDER)
async def unload_model(server_id: UUID, model_name: ModelName, request: Request, response: Response) -> object:
    """Has a model unloaded when what it works on is finished; for the scope admin. Its tickets wait meanwhile."""
    return await _ordered(server_id, model_name, "unload", request, response)


async def _ordered(server_id: UUID, model: str, what: What, request: Request, response: Response) -> ModelOrder:
    order = await services_of(request).model_orders.give(server_id, model, what, actor_of(caller_of(request)))
    if order.goes_on:
        response.status_code = 202
    return order


@router.delete("/{server_id}", status_code=204, responses=problems(404, 409, 422))
async def remove_server(server_id: UUID, request: Request) -> None:
    """Takes a server out; what it has in flight is finished. For the scope admin."""
    await services_of(request).servers.remove(server_id, actor_of(caller_of(request)))
