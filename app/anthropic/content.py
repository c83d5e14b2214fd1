"""The system text and the messages of a request as those of a chat, and where each of them came from."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import invalid
from app.openai.requests import checked_at, unsupported

SENDABLE = "text, image, document, search_result, tool_use, tool_result and thinking can"
# What belongs to tools that run at Anthropic.
_SERVER_TOOLS = ("server_tool_use", "mcp_tool_use", "container_upload")
_NO_FILES = "no files are kept for messages: send the data itself"

Text = dict[str, str]


class _Block(BaseModel):
    # Fields such as cache_control and citations ask for nothing that changes an answer here.
    model_config = ConfigDict(extra="allow", strict=True)


class TextBlock(_Block):
    text: str


class ImageBlock(_Block):
    source: dict[str, Any]


class ImageData(_Block):
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class ImageUrl(_Block):
    url: Annotated[str, Field(pattern="^https?://")]


class ToolUseBlock(_Block):
    id: str
    name: Annotated[str, Field(min_length=1, max_length=256)]
    input: dict[str, Any]


class ToolResultBlock(_Block):
    tool_use_id: str
    content: str | list[dict[str, Any]] | None = None
    is_error: bool | None = None


class ThinkingBlock(_Block):
    thinking: str


class DocumentBlock(_Block):
    source: dict[str, Any]
    title: str | None = None
    context: str | None = None


class PlainText(_Block):
    data: str


class DocumentContent(_Block):
    content: str | list[dict[str, Any]]


class SearchResultBlock(_Block):
    source: str
    title: str
    content: list[dict[str, Any]]


class MessageParam(_Block):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class Conversation:
    """The messages of a chat. What is wrong with `messages[2].content[1]` of it is told as of where that came from."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.origins: list[list[str]] = []

    def add_system(self, system: str | Sequence[Mapping[str, Any]] | None) -> None:
        """Raises InvalidRequest, naming the block."""
        for text, where in _texts(system or "", "system"):
            self._part("system", {"type": "text", "text": text}, where)

    def add(self, given: Any, where: str) -> None:
        """One message. Turns of the same role that follow each other are one.

        Raises:
            InvalidRequest, UnsupportedParameter: naming the block.
        """
        message = checked_at(MessageParam, given, where)
        role, blocks = message.role, _blocks(message.content)
        if not blocks and role != "assistant":
            raise invalid(f"{where}.content", "must not be empty")
        # Chats have no images in the results of tools: they follow them.
        after: list[tuple[dict[str, Any], str]] = []
        for place, block in enumerate(blocks):
            at = f"{where}.content[{place}]" if isinstance(message.content, list) else f"{where}.content"
            kind = _kind(block, at)
            if role == "assistant" and kind in ("thinking", "redacted_thinking", "tool_use"):
                self._of_the_assistant(kind, block, at)
            elif role == "user" and kind == "tool_result":
                after += self._result(block, at)
            else:
                for part in _parts(kind, block, at):
                    self._part(role, part, at)
        for part, at in after:
            self._part(role, part, at)

    @property
    def goes_on(self) -> bool:
        """Whether the answer is to go on with the last message."""
        last: dict[str, Any] = self.messages[-1] if self.messages else {"role": "", "content": []}
        said = any(part.get("text", "").strip() for part in last["content"])
        return bool(last["role"] == "assistant" and said) and not last.get("tool_calls")

    def chat(self) -> list[dict[str, Any]]:
        return [{**message, "content": _content(message["content"])} for message in self.messages]

    def _of_the_assistant(self, kind: str, block: dict[str, Any], at: str) -> None:
        message = self._turn("assistant", at)
        if kind == "thinking":
            said = checked_at(ThinkingBlock, block, at).thinking
            if said:
                message["reasoning_content"] = message.get("reasoning_content", "") + said
        elif kind == "tool_use":
            call = checked_at(ToolUseBlock, block, at)
            function = {"name": call.name, "arguments": json.dumps(call.input, ensure_ascii=False)}
            message.setdefault("tool_calls", []).append({"id": call.id, "type": "function", "function": function})

    def _result(self, block: dict[str, Any], at: str) -> list[tuple[dict[str, Any], str]]:
        """Adds what a tool answered; returns its images."""
        result = checked_at(ToolResultBlock, block, at)
        inner = [
            (part, place)
            for each, place in _placed(result.content or "", f"{at}.content")
            for part in _parts(_kind(each, place), each, place)
        ]
        texts = [part for part, _ in inner if part["type"] == "text"]
        if result.is_error:
            # No chat has a place for it.
            texts.insert(0, {"type": "text", "text": "Error:"})
        self.messages.append({"role": "tool", "tool_call_id": result.tool_use_id, "content": texts})
        self.origins.append([at])
        return [(part, place) for part, place in inner if part["type"] != "text"]

    def _part(self, role: str, part: dict[str, Any], where: str) -> None:
        self._turn(role, where)["content"].append(part)
        self.origins[-1].append(where)

    def _turn(self, role: str, where: str) -> dict[str, Any]:
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != role:
            last = {"role": role, "content": []}
            self.messages.append(last)
            self.origins.append([where.partition(".")[0]])
        return last


def conversation(system: str | list[dict[str, Any]] | None, messages: Sequence[Any]) -> Conversation:
    """
    Raises:
        InvalidRequest, UnsupportedParameter: naming the block that is off.
    """
    made = Conversation()
    made.add_system(system)
    for place, message in enumerate(messages):
        made.add(message, f"messages[{place}]")
    return made


def _blocks(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content


def _placed(content: str | list[dict[str, Any]], where: str) -> list[tuple[dict[str, Any], str]]:
    whole = isinstance(content, str)
    return [(block, where if whole else f"{where}[{place}]") for place, block in enumerate(_blocks(content))]


def _texts(content: str | Sequence[Mapping[str, Any]], where: str) -> list[tuple[str, str]]:
    """Of blocks that are texts only."""
    found = []
    for block, at in _placed(content if isinstance(content, str) else list(map(dict, content)), where):
        if (kind := _kind(block, at)) != "text":
            raise unsupported(f"{at}.type", f"{kind[:50]!r} cannot stand here; text can")
        found.append((checked_at(TextBlock, block, at).text, at))
    return found


def _kind(block: Mapping[str, Any], at: str) -> str:
    kind = block.get("type")
    if not isinstance(kind, str):
        raise invalid(f"{at}.type", "is required" if kind is None else "must be a text")
    return kind


def _parts(kind: str, block: dict[str, Any], at: str) -> list[dict[str, Any]]:
    """The parts of a chat's message that a block is."""
    match kind:
        case "text":
            return [_text(checked_at(TextBlock, block, at).text)]
        case "image":
            return [{"type": "image_url", "image_url": {"url": _image(block, at)}}]
        case "document":
            return _document(checked_at(DocumentBlock, block, at), f"{at}.source")
        case "search_result":
            found = checked_at(SearchResultBlock, block, at)
            texts = [text for text, _ in _texts(found.content, f"{at}.content")]
            return [_text("\n".join([found.title, found.source, *texts]))]
    if kind in _SERVER_TOOLS or kind.endswith("_tool_result"):
        raise unsupported(f"{at}.type", "there are no built-in tools here; offer functions of your own")
    raise unsupported(f"{at}.type", f"{kind[:50]!r} cannot be sent to a model here; {SENDABLE}")


def _image(block: dict[str, Any], at: str) -> str:
    source = checked_at(ImageBlock, block, at).source
    at = f"{at}.source"
    match _kind(source, at):
        case "base64":
            image = checked_at(ImageData, source, at)
            try:
                base64.b64decode(image.data, validate=True)
            except (binascii.Error, ValueError):
                raise invalid(f"{at}.data", "is no base64") from None
            return f"data:{image.media_type};base64,{image.data}"
        case "url":
            return checked_at(ImageUrl, source, at).url
        case "file":
            raise unsupported(f"{at}.type", _NO_FILES)
    raise invalid(f"{at}.type", "must be base64 or url")


def _document(document: DocumentBlock, at: str) -> list[dict[str, Any]]:
    head = [text for text in (document.title, document.context) if text]
    match _kind(document.source, at):
        case "text":
            return [_text("\n".join([*head, checked_at(PlainText, document.source, at).data]))]
        case "content":
            inner = checked_at(DocumentContent, document.source, at).content
            parts = [
                part
                for block, place in _placed(inner, f"{at}.content")
                for part in _parts(_kind(block, place), block, place)
            ]
            return [*map(_text, head), *parts]
        case "file":
            raise unsupported(f"{at}.type", _NO_FILES)
        case "base64" | "url":
            raise unsupported(f"{at}.type", "PDFs are not read here: send their text as a source of type text")
    raise invalid(f"{at}.type", "must be text or content")


def _text(text: str) -> Text:
    return {"type": "text", "text": text}


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if not parts:
        return ""
    return str(parts[0]["text"]) if len(parts) == 1 and parts[0]["type"] == "text" else parts
