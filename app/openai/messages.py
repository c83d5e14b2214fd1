"""The messages of a chat: checked, and as a chat template expects them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.errors import invalid
from app.openai.pictures import IMAGE_URL, PLACE_OF_IMAGE
from app.openai.requests import unsupported
from app.storable import check_document, parsed_json

# OpenAI's newer name for what templates know as the system message.
ROLES = {"developer": "system"}


class Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None
    refusal: str | None = None


class Function(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class Call(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str
    type: Literal["function"] = "function"
    function: Function


class Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


def plain(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages as they are stored."""
    return [message.model_dump(mode="json", exclude_none=True) for message in messages]


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each content one text, or with images a list of parts, and the arguments of tool calls as objects.

    Takes them as they are stored. Raises:
        InvalidRequest, UnsupportedParameter: naming the message.
    """
    return [_for_template(message, place) for place, message in enumerate(messages)]


def _for_template(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    for name in ("function_call", "audio"):
        if message.get(name) is not None:
            raise unsupported(
                f"messages[{place}].{name}", "use tool_calls" if name == "function_call" else "no model takes audio"
            )
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    if content is None and not calls and role != "assistant":
        raise invalid(f"messages[{place}].content", "is required")
    shown = {**message, "role": ROLES.get(role, role), "content": _content(content, f"messages[{place}].content")}
    if calls:
        shown["tool_calls"] = [_call(call) for call in calls]
    return shown


def _content(content: str | list[dict[str, Any]] | None, where: str) -> str | list[dict[str, str]]:
    if content is None or isinstance(content, str):
        return content or ""
    parts = []
    for place, part in enumerate(content):
        kind = part["type"]
        if kind == IMAGE_URL:
            parts.append(PLACE_OF_IMAGE)
            continue
        text = part.get("text") if kind in ("text", "input_text", "output_text") else part.get("refusal")
        if text is None:
            name = f"{where}[{place}]"
            if kind in ("text", "refusal"):
                raise invalid(f"{name}.{kind}", "is required")
            raise unsupported(f"{name}.type", f"{kind[:50]!r} cannot be sent to a model here; parts of type text can")
        parts.append({"type": "text", "text": text})
    if any(part["type"] != "text" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": arguments_of(function["arguments"])}}


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments of a call, which templates write into the prompt, all of them an object.

    A call may have been cut off, or the model may have written no JSON: what it wrote then stands under `arguments`.
    """
    try:
        found = check_document(parsed_json((text or "{}").encode()))
    except (PydanticCustomError, ValueError):
        found = text
    return found if isinstance(found, dict) else {"arguments": found}
