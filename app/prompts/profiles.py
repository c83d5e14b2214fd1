"""What a model's folder tells of what the model can do, for those who choose one: length and capabilities."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.config import Settings
from app.errors import ChatTemplateBroken
from app.prompts.adapters import ARGUMENTS_FILE, CONFIG_FILE
from app.prompts.parsers import PARSERS_FILE, Parsers
from app.prompts.templates import TEMPLATE_FILE
from app.services.repository import ABSENT, VERSION, files_of, stamp_of

# vLLM's own embedding input, or a vector as output.
_EMBEDS = re.compile(r'"embedding_request"|output\s*\[[^\]]*TYPE_FP(?:16|32)')
_GENERATES = re.compile(r'(?m)^\s*backend:\s*"vllm"')
_SIZE = re.compile(r"TYPE_FP(?:16|32)\s+dims:\s*\[\s*(?:[-\d]+\s*,\s*)*(\d+)\s*\]")
_SMALLER = re.compile(r'key:\s*"matryoshka_dimensions"\s+value:\s*\{\s*string_value:\s*"([\d, ]+)"')
_TOOLS = re.compile(r"\btools\b")


@dataclass(frozen=True, slots=True)
class Capabilities:
    chat: bool
    embed: bool
    tools: bool
    reasoning: bool
    images: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """`max_model_len` in tokens; each None where the folder does not tell, or is not here."""

    max_model_len: int | None = None
    capabilities: Capabilities | None = None
    # Of its vectors: its own first, then those it can be cut to.
    dimensions: tuple[int, ...] = ()

    def as_fields(self) -> dict[str, Any]:
        able = None if self.capabilities is None else asdict(self.capabilities)
        return {"max_model_len": self.max_model_len, "capabilities": able}


UNKNOWN = Profile()
Stamps = tuple[tuple[int, int], ...]


class Profiles:
    """A file that changed is read again."""

    def __init__(self, settings: Settings, parsers: Parsers) -> None:
        self._repository = Path(settings.model_repository)
        self._parsers = parsers
        self._read: dict[str, tuple[Stamps, Profile]] = {}

    def of(self, model: str) -> Profile:
        of_version = (f"{VERSION}/{name}" for name in (ARGUMENTS_FILE, TEMPLATE_FILE, PARSERS_FILE))
        files = files_of(self._repository, model, CONFIG_FILE, *of_version)
        if files is None:
            return UNKNOWN
        stamps = tuple(map(stamp_of, files))
        read = self._read.get(model)
        if read is None or read[0] != stamps:
            read = self._read[model] = (stamps, self._profile(model, stamps, *files[:3]))
        return read[1]

    def _profile(self, model: str, stamps: Stamps, config: Path, arguments: Path, template: Path) -> Profile:
        if stamps[0] == ABSENT:
            return UNKNOWN
        try:
            configured = config.read_text("utf-8")
            written = template.read_text("utf-8") if stamps[2] != ABSENT else ""
            given = json.loads(arguments.read_text("utf-8")) if stamps[1] != ABSENT else {}
            length = given.get("max_model_len")
            reasoning = self._parsers.of(model).reasoning is not None
        except (OSError, ValueError, AttributeError, RecursionError, ChatTemplateBroken):
            return UNKNOWN
        chats = bool(written) and _GENERATES.search(configured) is not None
        able = Capabilities(
            chat=chats,
            embed=_EMBEDS.search(configured) is not None,
            tools=chats and _TOOLS.search(written) is not None,
            reasoning=chats and reasoning,
        )
        return Profile(length if isinstance(length, int) and length > 0 else None, able, _dimensions(configured))


def _dimensions(configured: str) -> tuple[int, ...]:
    size, smaller = _SIZE.search(configured), _SMALLER.search(configured)
    if size is None:
        return ()
    return (int(size[1]), *(int(each) for each in re.findall(r"\d+", smaller[1] if smaller else "")))
