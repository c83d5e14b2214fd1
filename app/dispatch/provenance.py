"""What made an answer: the server, its engine and model, and the parameters it was really sent."""

from __future__ import annotations

from typing import Any

from app.dispatch.choices import Choices


def provenance_of(choices: Choices | None) -> dict[str, Any] | None:
    """As it is stored with the result and its attempt; None where no server was asked."""
    if choices is None or choices.first is None:
        return None
    server, model, request = choices.lane.server, choices.model, choices.first
    parameters = request.sent or {name: value for name, value in request.parameters.items() if name != "task"}
    return {
        "server": server.title,
        "kind": server.entry.kind,
        "engine_version": (model and model.engine) or None,
        "model_revision": (model and model.revision) or None,
        "parameters": parameters,
    } | ({"usage_estimated": True} if choices.estimated else {})
