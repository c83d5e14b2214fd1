"""GET /v1/models: what the fleet serves, and what it has served before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from app.anthropic.models import model_info, model_page
from app.api.dependencies import caller_of, services_of
from app.api.openai.documents import openai_errors
from app.api.problems import is_anthropic
from app.api.security import READ, GuardedRoute
from app.errors import ModelNotFound
from app.prompts.adapters import Chosen
from app.prompts.profiles import Profile
from app.services.catalog import CatalogEntry

OWNER = "triton"
MOST_MODELS = 1000
OF_ANTHROPIC = "with the header `anthropic-version`"

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=GuardedRoute, dependencies=[READ])


@router.get("", responses=openai_errors())
@router.get("/", responses=openai_errors(), include_in_schema=False)
async def list_openai_models(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MOST_MODELS, description=OF_ANTHROPIC)] = 20,
    after_id: Annotated[str | None, Query(max_length=255, description=OF_ANTHROPIC)] = None,
    before_id: Annotated[str | None, Query(max_length=255, description=OF_ANTHROPIC)] = None,
) -> dict[str, Any]:
    """All models that take requests, and their adapters with the model as `parent`; not all need be `ready`.

    With the header `anthropic-version` they are listed in Anthropic's form, in pages.
    """
    services = services_of(request)
    entries = {entry.name: entry for entry in await services.catalog.models()}
    since = await services.catalog.first_seen()
    ids = services.adapters.ids(entries)
    caller = caller_of(request)
    data = [
        _rendered(id_, chosen, entries[chosen.model], since, services.profiles.of(chosen.model))
        for id_, chosen in sorted(ids.items())
        if caller.may_use(chosen.model, chosen.adapter)
    ]
    if is_anthropic(request.scope):
        return model_page(data, limit, after_id, before_id)
    return {"object": "list", "data": data}


@router.get("/{model:path}", responses=openai_errors())
async def get_openai_model(
    model: Annotated[str, Path(max_length=255, pattern=r"^[^\x00]+$")], request: Request
) -> dict[str, Any]:
    """One model, or one adapter."""
    services = services_of(request)
    chosen = await services.adapters.resolve(caller_of(request), model)
    since = await services.catalog.first_seen()
    for entry in await services.catalog.models():
        if entry.name == chosen.model:
            found = _rendered(model, chosen, entry, since, services.profiles.of(chosen.model))
            return model_info(found) if is_anthropic(request.scope) else found
    raise ModelNotFound(f"No server has ever served a model named {model!r}.")


def _rendered(
    id_: str, chosen: Chosen, entry: CatalogEntry, since: Mapping[str, int], profile: Profile
) -> dict[str, Any]:
    return {
        "id": id_,
        "object": "model",
        "created": since.get(entry.name, 0),
        "owned_by": OWNER,
        "parent": None if chosen.adapter is None else chosen.model,
        "state": entry.public_state,
        **profile.as_fields(),
    }
