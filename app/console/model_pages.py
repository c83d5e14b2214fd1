"""Models: the state of each and why, and of one its adapters, its servers, its tensors and what Triton counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response

from app.api.dependencies import caller_of, services_of
from app.api.security import READ
from app.console.entrance import PREFIX, PageRoute
from app.console.pages import page
from app.engines.registry import TAKE_ORDERS
from app.prompts.profiles import Capabilities

NANOSECONDS = 1e9
ABILITIES = {
    "chat": "chats",
    "embed": "embeds",
    "tools": "calls tools",
    "reasoning": "reasons",
    "images": "sees images",
}

router = APIRouter(prefix=f"{PREFIX}/models", route_class=PageRoute, include_in_schema=False, dependencies=[READ])


class Counts(NamedTuple):
    """Of a model's requests on one server, since it was loaded there; times are means in seconds."""

    server: str
    succeeded: int
    failed: int
    queued: float | None
    computed: float | None
    total: float | None


@router.get("")
async def models(request: Request) -> Response:
    services, caller = services_of(request), caller_of(request)

    async def gather() -> dict[str, Any]:
        entries = [entry for entry in await services.catalog.models() if caller.sees(entry.name)]
        rows = [(entry, services.profiles.of(entry.name), services.adapters.of(entry.name) or ()) for entry in entries]
        return {"rows": [(entry, profile, can(profile.capabilities), adapters) for entry, profile, adapters in rows]}

    return await page(request, "models.html", gather)


@router.get("/{model_name:path}")
async def model(request: Request, model_name: str) -> Response:
    services, caller = services_of(request), caller_of(request)
    if not caller.sees(model_name):
        caller.require_model(model_name)

    async def gather() -> dict[str, Any]:
        entry, details = await services.catalog.describe(model_name)
        profile = services.profiles.of(model_name)
        adapters = services.adapters.of(model_name)
        return {
            "entry": entry,
            "profile": profile,
            "able": can(profile.capabilities),
            "adapters": adapters,
            "inputs": details["inputs"],
            "outputs": details["outputs"],
            "counts": [counts_of(server, told) for server, told in sorted(details["statistics"].items())],
            "states": [
                (server, state, reason, server.row_id is not None and server.entry.kind in TAKE_ORDERS)
                for server, state, reason in services.catalog.states_of(model_name)
            ],
        }

    return await page(request, "model.html", gather)


def can(capabilities: Capabilities | None) -> list[str]:
    """What it does, as far as its folder tells."""
    if capabilities is None:
        return []
    return [said for name, said in ABILITIES.items() if getattr(capabilities, name)]


def counts_of(server: str, told: Sequence[Mapping[str, Any]]) -> Counts:
    """Of all versions; what Triton tells in nanoseconds and as texts."""
    sums = {kind: [0, 0] for kind in ("success", "fail", "queue", "compute_infer")}
    for version in told:
        for kind, each in version.get("inference_stats", {}).items():
            if kind in sums:
                sums[kind][0] += int(each.get("count", 0))
                sums[kind][1] += int(each.get("ns", 0))

    def mean(kind: str) -> float | None:
        count, nanoseconds = sums[kind]
        return nanoseconds / count / NANOSECONDS if count else None

    return Counts(server, sums["success"][0], sums["fail"][0], mean("queue"), mean("compute_infer"), mean("success"))
