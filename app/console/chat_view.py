"""What the page of a chat shows: its tickets as questions and answers, and the form as the last message was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from fastapi import Request
from pydantic_core import to_json

from app.api.dependencies import caller_of, services_of
from app.console.asking import LONGEST, text_models
from app.console.render import state_of
from app.errors import AppError
from app.openai.written import Written, read
from app.queue.ticket import Status
from app.services.chats import FROM, Turn

SHOWN = 30
# In the metadata of a prompt: the id of the named instructions that it begins with.
INSTRUCTIONS = "instructions"


async def models_that_see(request: Request) -> list[str]:
    """Those whose folder says that they take images."""
    profiles = services_of(request).profiles
    able = {entry.name: profiles.of(entry.name).capabilities for entry in await text_models(request)}
    return [name for name, can in able.items() if can is not None and can.images]


def is_system(message: Mapping[str, Any]) -> bool:
    return message["role"] in ("system", "developer")


def written_of(row: Mapping[str, Any]) -> Written:
    return read(row["output"] or "", row["request"] or {})


async def shown(
    request: Request, chat_id: UUID, at: UUID | None, given: Mapping[str, str], refused: AppError | None = None
) -> dict[str, Any]:
    services, caller = services_of(request), caller_of(request)
    row = await services.chats.get(caller, chat_id)
    path = await services.chats.path(caller, chat_id, at)
    rows = await services.chats.turns(caller, [turn.id for turn in path])
    rated = await services.ratings.of(caller, list(rows))
    turns = [_turn(turn, rows[turn.id], rated.get(turn.id), turn is path[-1]) for turn in path if turn.id in rows]
    leaf = turns[-1] if turns else None
    before = leaf["row"] if leaf else {}
    asked = before.get("request") or {}
    first = before.get("first")
    # What was typed where it was refused, else as the last message was sent.
    named = await services.instructions.visible(caller)
    chosen = (before.get("metadata") or {}).get(INSTRUCTIONS, "")
    chosen = chosen if chosen in {str(each["id"]) for each in named} else ""
    same = {
        "model": before.get("model", ""),
        "message": "",
        "system": _text(first) if first and is_system(first) and not chosen else "",
        "instructions": chosen,
        "tools": to_json(asked["tools"], indent=2).decode() if asked.get("tools") else "",
        "images_of": "",
        "max_tokens": _shown_number(asked.get("max_tokens")),
        "temperature": _shown_number(asked.get("temperature")),
        "after": str(before.get("id", "")),
    }
    return {
        "row": row,
        "turns": turns,
        "leaf": leaf and leaf["id"],
        "final": leaf is None or leaf["final"],
        "begun": _begun(turns),
        "models": await text_models(request),
        "seeing": await models_that_see(request),
        "named": named,
        "calls": leaf["written"].calls if leaf and leaf["written"] else [],
        "longest": LONGEST,
        "given": same | dict(given),
        # A refused edit is shown in the form at the end, which says of which message it is another one.
        "edited": bool(given) and given["after"] != same["after"],
        "same": same,
        "refused": refused,
        "meaning": services.meaning.on,
        "others": await services.chats.newest(caller, SHOWN),
    }


def _turn(turn: Turn, row: Mapping[str, Any], rating: Mapping[str, Any] | None, last: bool) -> dict[str, Any]:
    place = turn.siblings.index(turn.id)
    final = Status(row["status"]).final
    said = row["said"] or []
    return {
        "key": turn.id.hex,
        "id": turn.id,
        "row": row,
        "rating": rating,
        "last": last,
        "state": state_of(row),
        "final": final,
        "written": written_of(row) if final and row["output"] is not None else None,
        "said": [{"role": each["role"], "parts": parts_of(each)} for each in said],
        "text": _text(said[-1]) if said else "",
        # What tools said is sent once more only with the answer that had called them.
        "editable": [each["role"] for each in said] == ["user"],
        "after": turn.after or (row["metadata"] or {}).get(FROM, ""),
        "place": place + 1,
        "of": len(turn.siblings),
        "before": turn.siblings[place - 1] if place else None,
        "next": turn.siblings[place + 1] if place + 1 < len(turn.siblings) else None,
    }


def _begun(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What stands before the first message of the chat, where it goes on from a ticket that is elsewhere."""
    messages = turns[0]["row"]["begun"] if turns else None
    own = len(turns[0]["said"]) if turns else 0
    return [{"role": each["role"], "parts": parts_of(each)} for each in (messages or [])[: -own or None]]


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Texts as `text`, images that came along as `image`, and of anything else the `kind`."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"text": content}]
    made = []
    for part in content or []:
        url = (part.get("image_url") or {}).get("url") if isinstance(part.get("image_url"), dict) else None
        if isinstance(part.get("text"), str):
            made.append({"text": part["text"]})
        elif isinstance(url, str) and url.startswith("data:image/"):
            made.append({"image": url})
        else:
            made.append({"kind": str(part.get("type"))})
    return made


def _text(message: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in parts_of(message) if "text" in part)


def _shown_number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
