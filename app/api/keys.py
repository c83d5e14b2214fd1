from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field

from app.api.dependencies import problems, services_of
from app.api.schemas import RequestBody
from app.api.security import ADMIN, GuardedRoute
from app.services.callers import Scope
from app.services.keys import LONGEST_DAYS, MOST_OF_A_LIMIT, MOST_TOKENS, MOST_WEIGHT, NewKey
from app.services.webhooks import Webhook, accepted
from app.storable import StorableText

router = APIRouter(prefix="/keys", tags=["keys"], route_class=GuardedRoute, dependencies=[ADMIN])

Name = Annotated[StorableText, Field(min_length=1, max_length=200)]
# Strict bodies take no text for an enum unless told how.
ScopeName = Annotated[Scope, BeforeValidator(lambda value: Scope(value) if value in list(Scope) else value)]


class KeyCreate(RequestBody):
    name: Name = Field(description="what you call it by", examples=["alice"])
    owner: Name | None = Field(None, description="whom it belongs to; by default somebody of the key's own name")
    scopes: list[ScopeName] = Field(default=[Scope.READ, Scope.SUBMIT], min_length=1, max_length=3)
    expires_in_days: float | None = Field(None, gt=0, le=LONGEST_DAYS, allow_inf_nan=False)
    requests_per_minute: int | None = Field(None, ge=1, le=MOST_OF_A_LIMIT)
    pending_limit: int | None = Field(None, ge=1, le=MOST_OF_A_LIMIT)
    tokens_per_day: int | None = Field(None, ge=1, le=MOST_TOKENS)
    weight: int | None = Field(None, ge=1, le=MOST_WEIGHT, description="the owner's share when owners take turns")
    webhook: Webhook | None = Field(None, description="whom to tell of the end of results that name no webhook")


class Key(BaseModel):
    id: UUID
    name: str
    owner: str
    hint: str = Field(description="how the key ends")
    scopes: list[Scope]
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    requests_per_minute: int | None
    pending_limit: int | None
    tokens_per_day: int | None
    weight: int
    webhook: dict[str, Any] | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls.model_validate(dict(row))


class CreatedKey(Key):
    key: str = Field(description="the key itself: not stored, so this is the one time it is shown")

    @classmethod
    def made(cls, row: Mapping[str, Any], key: str) -> Self:
        return cls.model_validate({**row, "key": key})


@router.post("/", status_code=201, response_model=CreatedKey, responses=problems(400, 413, 415, 422))
async def create_key(body: KeyCreate, request: Request) -> object:
    """Makes an API key; for the scope admin."""
    row, key = await services_of(request).keys.create(
        NewKey(
            name=body.name,
            owner=body.owner,
            scopes=body.scopes,
            expires_days=body.expires_in_days,
            requests_per_minute=body.requests_per_minute,
            pending_limit=body.pending_limit,
            tokens_per_day=body.tokens_per_day,
            weight=body.weight,
            webhook=accepted(body.webhook, services_of(request).settings),
        )
    )
    return CreatedKey.made(row, key)


@router.get("/", response_model=list[Key], responses=problems())
async def list_keys(request: Request) -> object:
    """All API keys, oldest first; for the scope admin."""
    return [Key.of(row) for row in await services_of(request).keys.list()]


@router.delete("/{key_id}", status_code=204, responses=problems(404, 422))
async def revoke_key(key_id: UUID, request: Request) -> None:
    """Revokes an API key for good; what it made stays. For the scope admin."""
    await services_of(request).keys.revoke(key_id)
