"""Which of the stop sequences ended a text, that has it at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StopSequences:
    """Takes a text in pieces and gives it back without what ended it, which `hit` then is."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        """`request` is stored with `stop` and `include_stop_str_in_output`."""
        self._sequences: list[str] = request.get("stop") or []
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """What can be no part of an end."""
        text = self._held + text
        longest = max((len(each) for each in self._sequences), default=0)
        place = next(
            (
                start
                for start in range(max(0, len(text) - longest), len(text))
                if any(each.startswith(text[start:]) for each in self._sequences)
            ),
            len(text),
        )
        self._held = text[place:]
        return text[:place]

    def finish(self, reason: str | None) -> str:
        """What is left, once it is known why the text ended."""
        ends = [each for each in self._sequences if self._held.endswith(each)] if reason == "stop" else []
        self.hit = max(ends, key=len, default=None)
        rest = self._held if self.hit is None else self._held[: len(self._held) - len(self.hit)]
        self._held = ""
        return rest
