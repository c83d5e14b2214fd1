"""The messages of a chat: checked, and as a chat template expects them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.errors import invalid
from app.openai.pictures import IMAGE_URL, place_of_image
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


def for_template(messages: list[Message]) -> list[dict[str, Any]]:
    """Each content one text, or with images a list of parts, and the arguments of tool calls as objects.

    Raises:
        InvalidRequest, UnsupportedParameter: naming the message.
    """
    return [_for_template(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _for_template(message: Message, where: str) -> dict[str, Any]:
    for name in ("function_call", "audio"):
        if (message.model_extra or {}).get(name) is not None:
            raise unsupported(
                f"{where}.{name}", "use tool_calls" if name == "function_call" else "no model takes audio"
            )
    if message.content is None and not message.tool_calls and message.role != "assistant":
        raise invalid(f"{where}.content", "is required")
    plain = message.model_dump(exclude_none=True)
    plain["role"] = ROLES.get(message.role, message.role)
    plain["content"] = _content(message.content, where)
    if message.tool_calls:
        plain["tool_calls"] = [_call(call) for call in message.tool_calls]
    return plain


def _content(content: str | list[Part] | None, where: str) -> str | list[dict[str, str]]:
    if content is None or isinstance(content, str):
        return content or ""
    parts = []
    for place, part in enumerate(content):
        if part.type == IMAGE_URL:
            parts.append(place_of_image(part.model_extra or {}, f"{where}.content[{place}]"))
            continue
        text = part.text if part.type in ("text", "input_text", "output_text") else part.refusal
        if text is None:
            name = f"{where}.content[{place}]"
            if part.type in ("text", "refusal"):
                raise invalid(f"{name}.{part.type}", "is required")
            raise unsupported(
                f"{name}.type", f"{part.type[:50]!r} cannot be sent to a model here; parts of type text can"
            )
        parts.append({"type": "text", "text": text})
    if any(part["type"] != "text" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _call(call: Call) -> dict[str, Any]:
    plain = call.model_dump()
    plain["function"]["arguments"] = arguments_of(call.function.arguments)
    return plain


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments of a call, which templates write into the prompt, all of them an object.

    A call may have been cut off, or the model may have written no JSON: what it wrote then stands under `arguments`.
    """
    try:
        found = check_document(parsed_json((text or "{}").encode()))
    except (PydanticCustomError, ValueError):
        found = text
    return found if isinstance(found, dict) else {"arguments": found}
