from dataclasses import asdict
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from app.api.dependencies import IdempotencyKey, caller_of, problems, services_of
from app.api.schemas import Model, ModelDetail, SendOptions, Ticket
from app.api.security import READ, WORK, GuardedRoute
from app.api.tickets import answer_with_ticket
from app.services.catalog import CatalogEntry
from app.services.webhooks import accepted

router = APIRouter(prefix="/models", tags=["models"], route_class=GuardedRoute)

ModelName = Annotated[str, Path(max_length=255, pattern=r"^[^\x00]+$")]


@router.post(
    "/send/{model_name}/{context_id}",
    dependencies=[WORK],
    status_code=202,
    response_model=Ticket,
    responses=problems(400, 404, 410, 413, 415, 422),
)
async def send_context(
    model_name: ModelName,
    context_id: UUID,
    request: Request,
    key: IdempotencyKey = None,
    body: SendOptions | None = None,
) -> Response:
    """Sends a stored prompt to a model and answers with a ticket at once."""
    services, caller, options = services_of(request), caller_of(request), body or SendOptions()
    caller.require_model(model_name, options.parameters.lora_name)
    await services.adapters.require(model_name, options.parameters.lora_name)
    row, replayed = await services.submissions.submit(
        caller,
        model_name,
        context_id,
        options.parameters,
        priority=options.priority,
        expires_in=options.expires_in,
        client_reference=options.client_reference,
        streamed=options.stream,
        idempotency_key=key,
        webhook=accepted(options.webhook, services.settings),
        wish=options.wish,
    )
    return answer_with_ticket(request, row, replayed)


@router.get("/", dependencies=[READ], response_model=list[Model], responses=problems())
async def list_models(request: Request) -> object:
    """What the fleet serves, asked from Triton; models it no longer serves are `unavailable`."""
    caller = caller_of(request)
    return [_rendered(entry) for entry in await services_of(request).catalog.models() if caller.sees(entry.name)]


@router.get("/{model_name}", dependencies=[READ], response_model=ModelDetail, responses=problems(404, 422))
async def get_model(model_name: ModelName, request: Request) -> object:
    """One model with its tensors and Triton's statistics."""
    caller = caller_of(request)
    if not caller.sees(model_name):
        caller.require_model(model_name)
    entry, details = await services_of(request).catalog.describe(model_name)
    return _rendered(entry) | details


def _rendered(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "version": entry.version,
        "state": entry.public_state,
        "reason": entry.reason or None,
        "servers": entry.servers,
        "set_aside": [asdict(row) for row in entry.set_aside],
    }
