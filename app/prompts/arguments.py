"""The arguments of a call in generated text: how far their JSON goes, and what becomes of what is no JSON. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_STRUCTURE = re.compile(r'[{}\[\]"\\]')
_IN_STRING = re.compile(r'["\\]')


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON text, unless the model wrote something else."""

    name: str
    arguments: str


@dataclass(slots=True)
class JsonScan:
    """How far into a JSON object or text the scan is; `end` is behind its last character, once that is there."""

    at: int = 0
    depth: int = 0
    quoted: bool = False
    end: int | None = field(default=None)

    def scan(self, text: str) -> None:
        while self.end is None:
            match = (_IN_STRING if self.quoted else _STRUCTURE).search(text, self.at)
            if match is None:
                self.at = len(text)
                return
            character = match.group()
            if character == "\\" and match.end() == len(text):
                self.at = match.start()
                return
            self.at = match.end() + (character == "\\")
            if character == '"':
                self.quoted = not self.quoted
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
            if self.depth <= 0 and not self.quoted and character != "\\":
                self.end = self.at


def is_closed(text: str) -> bool:
    value = JsonScan()
    value.scan(text)
    return value.end is not None


def call_of(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = json_of(arguments)
    if arguments is not None and not isinstance(arguments, dict):
        return None
    try:
        return ToolCall(encodable(value["name"]), encodable(json.dumps(arguments or {}, ensure_ascii=False)))
    except RecursionError:
        return None


def typed(given: Mapping[str, str], function: Any) -> str:
    """Keys and values as JSON: what the schema does not call text is read as JSON where it is."""
    schema = (function or {}).get("parameters") or {} if isinstance(function, dict) else {}
    properties = schema.get("properties") if isinstance(schema, dict) else None
    known = properties if isinstance(properties, dict) else {}
    typed: dict[str, Any] = {}
    for key, value in given.items():
        wanted = known.get(key)
        text = isinstance(wanted, dict) and wanted.get("type") == "string"
        found = None if text else json_of(value.strip())
        typed[key] = found if found is not None or (not text and value.strip() == "null") else value
    return encodable(json.dumps(typed, ensure_ascii=False))


def json_of(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def unescaped(text: str) -> str:
    found = json_of(f'"{text}"')
    return encodable(found) if isinstance(found, str) else text


def unquoted(text: str) -> str:
    found = json_of(text)
    return encodable(found) if isinstance(found, str) and isinstance(json_of(found), dict) else text


def encodable(text: str) -> str:
    """Half a surrogate pair, which a model may well write as an escape, is a character of no encoding."""
    return text.encode(errors="replace").decode()
