"""Tool calls in generated text, in the formats open models write them: pure.

    Hermes, Qwen   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    Mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}]   or   [TOOL_CALLS]name[ARGS]{...}
    Llama 3        {"name": ..., "parameters": {...}}; {...}         also behind <|python_tag|>

Text that only looks like a call stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

HERMES, HERMES_END = "<tool_call>", "</tool_call>"
MISTRAL, MISTRAL_ARGUMENTS, MISTRAL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
LLAMA = "<|python_tag|>"
MARKERS = (HERMES, MISTRAL, LLAMA)
# Mistral's templates take no other length.
ID_CHARS = 9

_DECODER = json.JSONDecoder()
_MARKER = re.compile("|".join(map(re.escape, MARKERS)))
_HERMES = re.compile(rf"{HERMES}(.*?)(?:{HERMES_END}|\Z)", re.DOTALL)
_MISTRAL = re.compile(r"\[TOOL_CALLS\]\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*[\w-]*\s*)?\[ARGS\]\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    content: str
    calls: list[ToolCall]


def call_id(seed: str, choice: int, number: int) -> str:
    """The id of a call: the same each time the answer is rendered."""
    digest = int.from_bytes(sha256(f"{seed}.{choice}.{number}".encode()).digest()[:8])
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "".join(digits[digest // 36**place % 36] for place in range(ID_CHARS))


def parse(text: str, names: Collection[str]) -> Parsed:
    """Tells calls from other text; `names` are the tools there are, for the format that has no marker."""
    marker = _MARKER.search(text)
    found: Parsed | None = None
    if marker is None:
        calls = _llama(text)
        if calls and all(call.name in names for call in calls):
            found = Parsed("", calls)
    elif marker.group() == HERMES:
        found = _hermes(text, marker.start())
    else:
        read = _mistral if marker.group() == MISTRAL else _llama
        calls = read(text[marker.start() :].removeprefix(LLAMA))
        found = Parsed(text[: marker.start()].rstrip(), calls) if calls else None
    return found or Parsed(text, [])


def _hermes(text: str, start: int) -> Parsed | None:
    calls = []
    for body in _HERMES.findall(text, start):
        call = _call(_json(body))
        if call is None:
            return None
        calls.append(call)
    around = _HERMES.sub("", text[start:]).strip()
    before = text[:start].rstrip()
    return Parsed("\n".join(part for part in (before, around) if part), calls)


def _mistral(text: str) -> list[ToolCall]:
    body = text.removeprefix(MISTRAL).strip()
    if body.startswith("["):
        listed = _json(body)
        calls = [_call(each) for each in listed] if isinstance(listed, list) else []
        return [call for call in calls if call is not None] if None not in calls else []
    found: list[ToolCall] = []
    position = 0
    while match := _MISTRAL.match(text, position):
        try:
            arguments, position = _DECODER.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            return []
        if not isinstance(arguments, dict):
            return []
        found.append(ToolCall(match.group(1), _dumped(arguments)))
        position += len(text[position:]) - len(text[position:].lstrip())
    return found if position == len(text) else []


def _llama(text: str) -> list[ToolCall]:
    text = text.strip()
    found: list[ToolCall] = []
    position = 0
    while position < len(text) and text[position] == "{":
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return []
        call = _call(value)
        if call is None:
            return []
        found.append(call)
        while position < len(text) and (text[position].isspace() or text[position] == ";"):
            position += 1
    return found if position == len(text) else []


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        # Some models quote the JSON once more.
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        return None
    try:
        return ToolCall(_encodable(value["name"]), _dumped(arguments))
    except RecursionError:
        return None


def forced(text: str) -> list[ToolCall]:
    """The calls of a text that was held to the schema of `required`; empty when it was cut off."""
    listed = _json(text)
    calls = [_call(each) for each in listed] if isinstance(listed, list) else [None]
    return [call for call in calls if call is not None] if None not in calls else []


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dumped(arguments: dict[str, Any]) -> str:
    return _encodable(json.dumps(arguments, ensure_ascii=False))


def _encodable(text: str) -> str:
    """Half a surrogate pair, which a model may well write as an escape, is a character of no encoding."""
    return text.encode(errors="replace").decode()


class ToolCallStream:
    """Lets text pass until a tool call could begin, and keeps the rest for the end.

    What `feed` returned and what `finish` returns as content are together the content that `parse` finds.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._text = ""
        self._passed = 0
        self._holding = False

    def feed(self, text: str) -> str:
        """Takes more text; returns what is certainly content."""
        self._text += text
        if self._holding:
            return ""
        start = self._text.lstrip()
        if not start or start.startswith("{"):
            return ""
        marker = _MARKER.search(self._text, max(0, self._passed - max(map(len, MARKERS))))
        if marker is not None:
            self._holding = True
            end = marker.start()
        else:
            end = len(self._text) - _could_begin(self._text)
        # The space before a call belongs to neither.
        end = len(self._text[:end].rstrip())
        passed, self._passed = self._passed, max(self._passed, end)
        return self._text[passed : self._passed]

    def finish(self) -> Parsed:
        """The rest of the content, and the calls."""
        parsed = parse(self._text, self._names)
        return Parsed(parsed.content[self._passed :], parsed.calls)


def _could_begin(text: str) -> int:
    """How many characters at the end may be the beginning of a marker."""
    for length in range(max(map(len, MARKERS)) - 1, 0, -1):
        if any(marker.startswith(text[-length:]) for marker in MARKERS):
            return length
    return 0
