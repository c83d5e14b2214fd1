"""Items as a conversation holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.db.ids import uuid7
from app.errors import InvalidRequest
from app.openai.answers import Row
from app.openai.requests import renamed
from app.openai.responses_input import items_of, messages_of, spoken
from app.openai.responses_render import lacks_calls, output_of
from app.queue.ticket import Status

PREFIXES = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}
# How many of the messages of a response's context came with it; of the stored request.
ADDED = "added"


def stored_items(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a client adds, each with an id of its own.

    Raises:
        InvalidRequest, UnsupportedParameter: one cannot be sent to a model, naming it.
    """
    try:
        messages_of(list(items))
    except InvalidRequest as error:
        raise renamed(error, lambda name: name.replace("input[", "items[", 1)) from None
    return [_stored(item) for item in items]


def _stored(item: Mapping[str, Any]) -> dict[str, Any]:
    kind = item.get("type") or "message"
    shown = {**item, "id": PREFIXES[kind] + uuid7().hex, "type": kind, "status": item.get("status") or "completed"}
    if kind == "message":
        shown["content"] = _parts(item["content"], item["role"])
    if kind == "reasoning":
        shown.setdefault("summary", [])
    return shown


def _parts(content: str | list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    kind = "output_text" if role == "assistant" else "input_text"
    parts = [{"type": kind, "text": content}] if isinstance(content, str) else content
    return [{"annotations": [], "logprobs": [], **part} if part["type"] == "output_text" else part for part in parts]


def items_of_turn(row: Row, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a final response adds to its conversation: its own input and its output, or nothing where it failed."""
    request = row["request"]
    if row["status"] != Status.COMPLETED or lacks_calls(row, request):
        return []
    said = spoken({"messages": messages}, request)
    before, digits = len(said) - request[ADDED], row["id"].hex
    return items_of(said, digits)[len(items_of(said[:before], digits)) :] + output_of(row, request)
