from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.api.dependencies import WindowDep, link_next, problems, services_of
from app.api.security import ADMIN, GuardedRoute
from app.queue.audit import Action

router = APIRouter(prefix="/audit", tags=["audit"], route_class=GuardedRoute, dependencies=[ADMIN])


class Entry(BaseModel):
    id: UUID
    created_at: datetime
    action: str = Field(examples=[Action.KEY_CREATED.value])
    actor: str = Field(description="`api`, or the user of a command", examples=["api"])
    actor_key_id: UUID | None = Field(description="the key by which it was done")
    actor_key_name: str | None
    actor_key_person: str | None
    owner: str | None = Field(description="whose the subject is")
    subject: str = Field(description="the id of what it was done to")
    subject_key_id: UUID | None = Field(description="the key that had made it, if that is known")
    details: dict[str, Any] | None


@router.get("/", response_model=list[Entry], responses=problems(422))
async def list_audit(window: WindowDep, request: Request, response: Response, action: Action | None = None) -> object:
    """Who made and revoked keys, and who cancelled or deleted what another key had made; newest first."""
    page = await services_of(request).audit.page(action, window)
    link_next(request, response, page)
    return page.rows
