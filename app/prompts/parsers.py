"""Which parsers a model's answers are read by: `<model>/1/parsers.json` in the model repository.

Without the file, calls are looked for as Hermes, Mistral and Llama 3 write them, and no text is taken for reasoning.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.config import Settings
from app.errors import ChatTemplateBroken
from app.prompts.families import REASONING, TOOL_CALLS
from app.services.repository import ABSENT, VERSION, files_of, stamp_of

PARSERS_FILE = "parsers.json"


@dataclass(frozen=True, slots=True)
class Named:
    """The names of the parsers, where the model's folder has them."""

    tool_calls: str | None = None
    reasoning: str | None = None


NONE = Named()
# Of a model whose folder is not here: servers that tell its reasoning apart themselves put it between these marks.
ELSEWHERE = Named(reasoning="qwen3")


class Parsers:
    """A file that changed is read again."""

    def __init__(self, settings: Settings) -> None:
        self._repository = Path(settings.model_repository)
        self._read: dict[str, tuple[tuple[int, int], Named]] = {}

    def of(self, model: str) -> Named:
        """Raises ChatTemplateBroken: the file names no parser there is."""
        files = files_of(self._repository, model, "", f"{VERSION}/{PARSERS_FILE}")
        if files is None:
            return ELSEWHERE
        folder, file = files
        stamp = stamp_of(file)
        if stamp == ABSENT:
            return NONE if stamp_of(folder) != ABSENT else ELSEWHERE
        known = self._read.get(model)
        if known is None or known[0] != stamp:
            known = self._read[model] = (stamp, _named(model, file))
        return known[1]


def _named(model: str, file: Path) -> Named:
    try:
        found = json.loads(file.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError
        given = {name: found.pop(name, None) for name in ("tool_calls", "reasoning")}
    except (OSError, ValueError, RecursionError):
        raise _broken(model, "it is no JSON object") from None
    if found:
        raise _broken(model, f"it knows tool_calls and reasoning, and not {min(found)[:50]!r}")
    _require(model, given["tool_calls"], TOOL_CALLS)
    _require(model, given["reasoning"], REASONING)
    return Named(**given)


def _require(model: str, name: Any, known: Collection[str]) -> None:
    if name is not None and (not isinstance(name, str) or name not in known):
        raise _broken(model, f"{str(name)[:50]!r} is none of {', '.join(sorted(known))}")


def _broken(model: str, reason: str) -> ChatTemplateBroken:
    return ChatTemplateBroken(
        f"{PARSERS_FILE} of the model {model!r} cannot be used: {reason}. The operator has to correct it."
    )
