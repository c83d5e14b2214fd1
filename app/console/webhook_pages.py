"""What became of webhooks, and delivering one again."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.api.dependencies import caller_of, root_of, services_of
from app.api.security import READ, SUBMIT
from app.console.entrance import PREFIX, PageRoute
from app.console.pages import page
from app.console.render import HEADERS
from app.errors import invalid
from app.services.webhooks import SEARCHED, DeliveryState

PER_PAGE = 50

router = APIRouter(prefix=f"{PREFIX}/webhooks", route_class=PageRoute, include_in_schema=False)


@router.get("", dependencies=[READ])
async def deliveries(
    request: Request, state: Annotated[str, Query(max_length=40)] = "", older_than: UUID | None = None
) -> Response:
    if state and state not in list(DeliveryState):
        raise invalid("state", f"is one of {', '.join(DeliveryState)}")

    async def gather() -> dict[str, Any]:
        wanted = DeliveryState(state) if state else None
        found = await services_of(request).webhooks.page(caller_of(request), wanted, PER_PAGE, older_than)
        return {
            "found": found,
            "state_of_delivery": DeliveryState.of,
            "states": list(DeliveryState),
            "given": {"state": state},
            "older_than": older_than,
            "searched": SEARCHED,
        }

    return await page(request, "webhooks.html", gather)


@router.post("/{delivery_id}/redeliver", dependencies=[SUBMIT])
async def redeliver(request: Request, delivery_id: UUID) -> Response:
    await services_of(request).webhooks.deliver_again(caller_of(request), delivery_id)
    return RedirectResponse(f"{root_of(request)}{PREFIX}/webhooks", 303, HEADERS)
