from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request

from app.api.dependencies import caller_of, problems, services_of
from app.api.schemas import Delivery, RotatedSecret, WebhookSecret
from app.api.security import READ, SUBMIT, GuardedRoute

router = APIRouter(tags=["webhooks"], route_class=GuardedRoute)


@router.get(
    "/results/{result_id}/webhooks",
    dependencies=[READ],
    response_model=list[Delivery],
    responses=problems(404, 410, 422),
)
async def list_deliveries(result_id: UUID, request: Request) -> object:
    """What became of a result's webhooks, oldest first."""
    rows = await services_of(request).webhooks.deliveries(caller_of(request), result_id)
    return [Delivery.of(row) for row in rows]


@router.post(
    "/results/{result_id}/webhooks/{delivery_id}/redeliver",
    dependencies=[SUBMIT],
    status_code=202,
    response_model=Delivery,
    responses=problems(404, 410, 422),
)
async def redeliver(result_id: UUID, delivery_id: UUID, request: Request) -> object:
    """Delivers once more, under the same `webhook-id`; one that has not ended yet is left to go on."""
    row = await services_of(request).webhooks.send_again(caller_of(request), result_id, delivery_id)
    return Delivery.of(row)


@router.get("/webhooks/secret", dependencies=[SUBMIT], response_model=WebhookSecret, responses=problems())
async def get_secret(request: Request) -> dict[str, Any]:
    """What signs your webhooks; takes the scope `submit`."""
    return {"secret": await services_of(request).webhooks.secret(caller_of(request))}


@router.post("/webhooks/secret/rotate", dependencies=[SUBMIT], response_model=RotatedSecret, responses=problems())
async def rotate_secret(request: Request) -> dict[str, Any]:
    """A new secret; for a day, deliveries are signed with the one before as well."""
    secret, until = await services_of(request).webhooks.rotate(caller_of(request))
    return {"secret": secret, "old_secret_signs_until": until}
