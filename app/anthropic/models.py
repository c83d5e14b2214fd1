"""Models as Anthropic's clients list them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from app.errors import invalid


def model_info(model: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model as OpenAI's clients have it."""
    return {
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": datetime.fromtimestamp(model["created"], UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": model.get("max_model_len"),
        "max_tokens": model.get("max_model_len"),
    }


def model_page(
    models: Sequence[Mapping[str, Any]], limit: int, after_id: str | None, before_id: str | None
) -> dict[str, Any]:
    """
    Raises:
        InvalidRequest: no model has the id that the page is to begin after, or to end before.
    """
    ids = [model["id"] for model in models]
    for name, id_ in (("after_id", after_id), ("before_id", before_id)):
        if id_ is not None and id_ not in ids:
            raise invalid(name, f"no model is called {id_[:100]!r}")
    first = 0 if after_id is None else ids.index(after_id) + 1
    last = len(ids) if before_id is None else ids.index(before_id)
    if before_id is not None and after_id is None:
        first = max(0, last - limit)
        more = first > 0
    else:
        more = last - first > limit
    page = [model_info(model) for model in models[first : max(first, min(last, first + limit))]]
    return {
        "data": page,
        "has_more": more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }
