from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field

from app.api.dependencies import caller_of, problems, services_of
from app.api.schemas import RequestBody
from app.api.security import ADMIN, GuardedRoute
from app.config import Settings
from app.services.audit import actor_of
from app.services.callers import LIMITS, Scope
from app.services.keys import (
    LONGEST_DAYS,
    LONGEST_MODEL,
    MOST_BYTES,
    MOST_DOLLARS,
    MOST_MODELS,
    MOST_OF_A_LIMIT,
    MOST_TOKENS,
    MOST_WEIGHT,
    NewKey,
)
from app.services.webhooks import Webhook, accepted
from app.storable import StorableText

router = APIRouter(prefix="/keys", tags=["keys"], route_class=GuardedRoute, dependencies=[ADMIN])

Name = Annotated[StorableText, Field(min_length=1, max_length=200)]
# Strict bodies take no text for an enum unless told how.
ScopeName = Annotated[Scope, BeforeValidator(lambda value: Scope(value) if value in list(Scope) else value)]


ModelId = Annotated[StorableText, Field(min_length=1, max_length=LONGEST_MODEL)]
Dollars = Annotated[float, Field(gt=0, le=MOST_DOLLARS, allow_inf_nan=False)]


class KeyCreate(RequestBody):
    name: Name = Field(description="what you call it by", examples=["alice"])
    person: Name | None = Field(None, description="who uses it", examples=["Alice Smith"])
    owner: Name | None = Field(None, description="whom it belongs to; by default somebody of the key's own name")
    scopes: list[ScopeName] = Field(default=[Scope.READ, Scope.SUBMIT], min_length=1, max_length=3)
    expires_in_days: float | None = Field(None, gt=0, le=LONGEST_DAYS, allow_inf_nan=False)
    requests_per_minute: int | None = Field(None, ge=1, le=MOST_OF_A_LIMIT)
    pending_limit: int | None = Field(None, ge=1, le=MOST_OF_A_LIMIT)
    tokens_per_day: int | None = Field(None, ge=1, le=MOST_TOKENS)
    tokens_per_month: int | None = Field(None, ge=1, le=MOST_TOKENS)
    dollars_per_day: Dollars | None = None
    dollars_per_month: Dollars | None = None
    storage_bytes: int | None = Field(
        None, ge=1, le=MOST_BYTES, description="what the owner's files may come to when this key uploads one"
    )
    models: list[ModelId] | None = Field(
        None,
        min_length=1,
        max_length=MOST_MODELS,
        description="the only models it may use, by their ids in GET /v1/models; a model's name allows its adapters",
    )
    weight: int | None = Field(None, ge=1, le=MOST_WEIGHT, description="the owner's share when owners take turns")
    webhook: Webhook | None = Field(None, description="whom to tell of the end of results that name no webhook")


def new_key(body: KeyCreate, settings: Settings, id_: UUID | None = None) -> NewKey:
    """Raises InvalidRequest where nothing may be delivered to the webhook."""
    return NewKey(
        name=body.name,
        owner=body.owner,
        scopes=body.scopes,
        expires_days=body.expires_in_days,
        person=body.person,
        models=body.models,
        **{name: getattr(body, name) for name in LIMITS},
        weight=body.weight,
        webhook=accepted(body.webhook, settings),
        id=id_,
    )


class Key(BaseModel):
    id: UUID
    name: str
    person: str | None
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
    tokens_per_month: int | None
    dollars_per_day: float | None
    dollars_per_month: float | None
    storage_bytes: int | None
    models: list[str] | None
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
    services = services_of(request)
    row, key = await services.keys.create(new_key(body, services.settings), actor_of(caller_of(request)))
    return CreatedKey.made(row, key)


@router.get("/", response_model=list[Key], responses=problems())
async def list_keys(request: Request) -> object:
    """All API keys, oldest first; for the scope admin."""
    return [Key.of(row) for row in await services_of(request).keys.list()]


@router.delete("/{key_id}", status_code=204, responses=problems(404, 422))
async def revoke_key(key_id: UUID, request: Request) -> None:
    """Revokes an API key for good; what it made stays. For the scope admin."""
    await services_of(request).keys.revoke(key_id, actor_of(caller_of(request)))
