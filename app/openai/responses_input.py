"""Items of the Responses API as messages of a chat, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import invalid
from app.openai.messages import Part
from app.openai.pictures import IMAGE_URL
from app.openai.requests import checked_at, unsupported

Messages = list[dict[str, Any]]
IMAGE = "input_image"
ADDRESSES = ("data:", "https://", "http://")


class Item(BaseModel):
    """What is returned as an output is sent again as it stands, with `id` and `status`."""

    model_config = ConfigDict(extra="allow", strict=True)


class MessageItem(Item):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class CallItem(Item):
    call_id: str
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class CallOutputItem(Item):
    call_id: str
    output: str | list[Part]


def messages_of(given: str | list[dict[str, Any]] | None) -> Messages:
    """The `input` of a request; what one turn of the assistant says and calls is one message.

    Raises:
        InvalidRequest, UnsupportedParameter: naming the item.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: Messages = []
    for place, item in enumerate(given or ()):
        where = f"input[{place}]"
        match item.get("type") or ("message" if "role" in item else None):
            case "message":
                message = checked_at(MessageItem, item, where)
                content = _content(message.content, f"{where}.content", images=message.role == "user")
                messages.append({"role": message.role, "content": content})
            case "function_call":
                call = checked_at(CallItem, item, where)
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                function = {"name": call.name, "arguments": call.arguments}
                messages[-1].setdefault("tool_calls", []).append(
                    {"id": call.call_id, "type": "function", "function": function}
                )
            case "function_call_output":
                answer = checked_at(CallOutputItem, item, where)
                content = _content(answer.output, f"{where}.output")
                messages.append({"role": "tool", "tool_call_id": answer.call_id, "content": content})
            case "reasoning":
                # Templates leave earlier reasoning out of the prompt as well.
                continue
            case None:
                raise invalid(f"{where}.type", "is required")
            case kind:
                raise unsupported(
                    f"{where}.type",
                    f"{str(kind)[:50]!r} cannot be sent to a model here; message, function_call and "
                    "function_call_output can",
                )
    return messages


def _content(content: str | list[Part], where: str, *, images: bool = False) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for place, part in enumerate(content):
        if images and part.type == IMAGE:
            parts.append(_image(part, f"{where}[{place}]"))
            continue
        if part.type not in ("input_text", "output_text", "text", "refusal"):
            raise unsupported(f"{where}[{place}].type", f"{part.type[:50]!r} cannot be sent to a model here; text can")
        name = "refusal" if part.type == "refusal" else "text"
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise invalid(f"{where}[{place}].{name}", "is required")
        parts.append({"type": "text", "text": text})
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _image(part: Part, where: str) -> dict[str, Any]:
    """As a chat has it."""
    more = part.model_extra or {}
    if more.get("file_id") is not None:
        raise unsupported(f"{where}.file_id", "send the image along, in image_url")
    url, detail = more.get(IMAGE_URL), more.get("detail")
    if not isinstance(url, str) or not url.lower().startswith(ADDRESSES):
        raise invalid(f"{where}.{IMAGE_URL}", "is an image as a data URL, data:image/png;base64,...")
    if detail not in (None, "auto", "low", "high"):
        raise invalid(f"{where}.detail", "is auto, low or high")
    return {"type": IMAGE_URL, IMAGE_URL: {"url": url} | ({"detail": detail} if detail else {})}


def items_of(messages: Messages, digits: str) -> list[dict[str, Any]]:
    """Stored messages as items; `digits` are those of the response whose input they are.

    Their ids are others than those of what the response put out.
    """
    items: list[dict[str, Any]] = []

    def add(prefix: str, item: dict[str, Any]) -> None:
        items.append({"id": f"{prefix}_{digits}_i{len(items)}", **item, "status": "completed"})

    for message in messages:
        role, content = message["role"], message.get("content")
        if role == "tool":
            add(
                "fco",
                {
                    "type": "function_call_output",
                    "call_id": message["tool_call_id"],
                    "output": "\n".join(_texts(content)),
                },
            )
            continue
        calls = message.get("tool_calls") or []
        if role == "assistant":
            texts = _texts(content)
            parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
            if any(texts) or not calls:
                add("msg", {"type": "message", "role": role, "content": parts})
        else:
            add("msg", {"type": "message", "role": role, "content": _input_parts(content)})
        for call in calls:
            add("fc", {"type": "function_call", "call_id": call["id"], **call["function"]})
    return items


def _texts(content: str | list[dict[str, Any]] | None) -> list[str]:
    if isinstance(content, list):
        return [part["text"] for part in content]
    return [content or ""]


def _input_parts(content: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        return [{"type": "input_text", "text": content or ""}]
    return [
        {"type": IMAGE, IMAGE_URL: part[IMAGE_URL]["url"], "detail": part[IMAGE_URL].get("detail", "auto")}
        if part["type"] == IMAGE_URL
        else {"type": "input_text", "text": part["text"]}
        for part in content
    ]


def spoken(context: Mapping[str, Any], request: Mapping[str, Any]) -> Messages:
    """The messages that went into a response, without its instructions."""
    messages: Messages = context["messages"] or []
    return messages[1:] if request.get("instructions") else messages
