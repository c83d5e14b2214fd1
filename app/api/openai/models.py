"""GET /v1/models: what the fleet serves, and what it has served before."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from app.api.dependencies import services_of
from app.api.openai.documents import openai_errors
from app.errors import ModelNotFound
from app.services.catalog import CatalogEntry

OWNER = "triton"

router = APIRouter(prefix="/v1/models", tags=["openai"])


@router.get("", responses=openai_errors())
async def list_openai_models(request: Request) -> dict[str, Any]:
    """All models that take requests; those not `ready` make them wait."""
    catalog = services_of(request).catalog
    entries, since = await catalog.models(), await catalog.first_seen()
    return {"object": "list", "data": [_rendered(entry, since.get(entry.name, 0)) for entry in entries]}


@router.get("/{model:path}", responses=openai_errors())
async def get_openai_model(
    model: Annotated[str, Path(max_length=255, pattern=r"^[^\x00]+$")], request: Request
) -> dict[str, Any]:
    """One model."""
    catalog = services_of(request).catalog
    await catalog.require(model)
    since = await catalog.first_seen()
    for entry in await catalog.models():
        if entry.name == model:
            return _rendered(entry, since.get(model, 0))
    raise ModelNotFound(f"No server has ever served a model named {model!r}.")


def _rendered(entry: CatalogEntry, since: int) -> dict[str, Any]:
    return {"id": entry.name, "object": "model", "created": since, "owned_by": OWNER, "state": entry.state}
