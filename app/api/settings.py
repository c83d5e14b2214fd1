from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from app.api.dependencies import caller_of, problems, services_of
from app.api.schemas import RequestBody
from app.api.security import ADMIN, GuardedRoute
from app.services.audit import actor_of
from app.services.changed_settings import SettingView
from app.storable import StorableText

router = APIRouter(prefix="/settings", tags=["settings"], route_class=GuardedRoute, dependencies=[ADMIN])


class SettingChange(RequestBody):
    value: Annotated[StorableText, Field(max_length=1000)] = Field(
        description="as the environment variable would have it", examples=["30"]
    )


@router.get("/", response_model=list[SettingView], responses=problems())
async def list_settings(request: Request) -> object:
    """Every setting with its value, default and meaning; for the scope admin."""
    return await services_of(request).changed_settings.list()


@router.put("/{setting}", response_model=SettingView, responses=problems(400, 404, 409, 413, 415, 422))
async def change_setting(setting: str, body: SettingChange, request: Request) -> object:
    """Changes one of those that may change while everything runs, in every process within seconds; for admins."""
    return await services_of(request).changed_settings.change(setting, body.value, actor_of(caller_of(request)))


@router.delete("/{setting}", response_model=SettingView, responses=problems(404, 409))
async def reset_setting(setting: str, request: Request) -> object:
    """Has the environment's value count again; for the scope admin."""
    return await services_of(request).changed_settings.reset(setting, actor_of(caller_of(request)))
