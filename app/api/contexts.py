from uuid import UUID

from fastapi import APIRouter, Request, Response

from app.api.body import StrictJsonRoute
from app.api.dependencies import ServicesDep, WindowDep, link_next, problems
from app.api.schemas import Context, ContextCreate
from app.errors import InvalidRequest

router = APIRouter(prefix="/contexts", tags=["contexts"], route_class=StrictJsonRoute)


@router.post("/", status_code=201, response_model=Context, responses=problems(400, 413, 415, 422))
async def create_context(body: ContextCreate, services: ServicesDep, response: Response) -> object:
    """Stores a prompt."""
    longest = services.settings.max_content_chars
    if len(body.content) > longest:
        message = f"is longer than {longest:,} characters"
        raise InvalidRequest(f"content: {message}", errors=[{"field": "content", "message": message}])
    context = await services.contexts.create(body.content, body.metadata)
    response.headers["Location"] = f"/contexts/{context['id']}"
    return context


@router.get("/", response_model=list[Context], responses=problems(422))
async def list_contexts(services: ServicesDep, window: WindowDep, request: Request, response: Response) -> object:
    """Stored prompts, newest first."""
    page = await services.contexts.page(window)
    link_next(request, response, page)
    return page.rows


@router.get("/{context_id}", response_model=Context, responses=problems(404, 422))
async def get_context(context_id: UUID, services: ServicesDep) -> object:
    """One stored prompt."""
    return await services.contexts.get(context_id)
