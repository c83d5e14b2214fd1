from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Response

from app.api.body import StrictJsonRoute
from app.api.dependencies import ServicesDep, problems
from app.api.results import POLL_AGAIN_SECONDS
from app.api.schemas import Model, ModelDetail, SendOptions, Ticket
from app.queue.ticket import Phase, Status
from app.services.catalog import CatalogEntry

router = APIRouter(prefix="/models", tags=["models"], route_class=StrictJsonRoute)

ModelName = Annotated[str, Path(max_length=255, pattern=r"^[^\x00]+$")]


@router.get("/", response_model=list[Model], responses=problems())
async def list_models(services: ServicesDep) -> object:
    """What the fleet serves, asked from Triton; models it no longer serves are `unavailable`."""
    return [_rendered(entry) for entry in await services.catalog.models()]


@router.get("/{model_name}", response_model=ModelDetail, responses=problems(404, 422))
async def get_model(model_name: ModelName, services: ServicesDep) -> object:
    """One model with its tensors and Triton's statistics."""
    entry, details = await services.catalog.describe(model_name)
    return _rendered(entry) | details


@router.post(
    "/send/{model_name}/{context_id}",
    status_code=202,
    response_model=Ticket,
    responses=problems(400, 404, 413, 415, 422),
)
async def send_context(
    model_name: ModelName,
    context_id: UUID,
    services: ServicesDep,
    response: Response,
    body: SendOptions | None = None,
) -> object:
    """Sends a stored prompt to a model and answers with a ticket at once."""
    options = body or SendOptions()
    ticket = await services.results.submit(
        model_name,
        context_id,
        options.parameters,
        priority=options.priority,
        expires_in=options.expires_in,
        client_reference=options.client_reference,
    )
    url = f"/results/{ticket.id}"
    response.headers["Location"] = url
    response.headers["Retry-After"] = POLL_AGAIN_SECONDS
    return Ticket(
        result_id=ticket.id,
        status=Status.PENDING,
        phase=Phase.QUEUED,
        model=ticket.model,
        context_id=ticket.context_id,
        created_at=ticket.created_at,
        status_url=url,
        cancel_url=f"{url}/cancel",
    )


def _rendered(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "version": entry.version,
        "state": entry.state,
        "reason": entry.reason or None,
        "servers": entry.servers,
    }
