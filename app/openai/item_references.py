"""Items of earlier responses, which a request may name by their ids instead of sending them again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.errors import ContextNotFound, NotFound, Removed, invalid
from app.openai.answers import Row
from app.openai.requests import Sources
from app.openai.responses_input import items_of, spoken
from app.openai.responses_render import output_of
from app.openai.responses_request import KIND
from app.queue.ticket import Status
from app.services.callers import Caller

_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})(?:_(i?)[0-9]{1,9})?")


def is_reference(item: Mapping[str, Any]) -> bool:
    """OpenAI's clients may leave out the type of a reference."""
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "role" not in item and "id" in item)


async def resolved(
    sources: Sources, caller: Caller, given: str | list[dict[str, Any]] | None
) -> str | list[dict[str, Any]] | None:
    """The `input` of a request with the items themselves in the places of their references.

    Raises:
        NotFound: no item has the id, or it is another owner's; names the reference.
    """
    if not isinstance(given, list) or not any(map(is_reference, given)):
        return given
    named = {place: _named(item, place) for place, item in enumerate(given) if is_reference(item)}
    rows = await sources.results.get_many(caller, {match for match, _ in named.values()})
    inputs: dict[UUID, list[dict[str, Any]]] = {}
    whole = []
    for place, item in enumerate(given):
        if place not in named:
            whole.append(item)
            continue
        id_, of_input = named[place]
        row = rows.get(id_)
        if row is None or row["kind"] != KIND or not row["kept"]:
            raise _missing(item["id"], place)
        if not of_input:
            items = output_of(row, row["request"]) if Status(row["status"]).final else []
        else:
            if id_ not in inputs:
                inputs[id_] = await _input_of(sources, caller, row)
            items = inputs[id_]
        found = next((each for each in items if each["id"] == item["id"]), None)
        if found is None:
            raise _missing(item["id"], place)
        whole.append(found)
    return whole


def _named(item: Mapping[str, Any], place: int) -> tuple[UUID, bool]:
    """The response whose item it is, and whether it was put into it or came out of it."""
    id_ = item.get("id")
    if not isinstance(id_, str):
        raise invalid(f"input[{place}].id", "is required" if id_ is None else "must be text")
    match = _ITEM_ID.fullmatch(id_)
    if match is None:
        raise _missing(id_, place)
    return UUID(match[1]), bool(match[2])


async def _input_of(sources: Sources, caller: Caller, row: Row) -> list[dict[str, Any]]:
    try:
        context = await sources.contexts.get(caller, row["context_id"])
    except (ContextNotFound, Removed):
        return []
    return items_of(spoken(context, row["request"]), row["id"].hex)


def _missing(id_: str, place: int) -> NotFound:
    message = f"no item has the id {id_[:100]!r}; send the item itself, or the id of one that is still stored"
    return NotFound(f"input[{place}].id: {message}", errors=[{"field": f"input[{place}].id", "message": message}])
