"""What a model wrote, told apart: its reasoning, what it says, and what it calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.openai.tools import ToolUse
from app.prompts.arguments import ToolCall
from app.prompts.families import ANY, HERMES, LISTED, REASONING, TOOL_CALLS
from app.prompts.reasoning import ReasoningStream
from app.prompts.toolcalls import Piece, ToolCallStream, collected

# Under this name the request is stored with what its model's folder tells, by which the answer is read for good.
PARSERS = "parsers"


@dataclass(slots=True)
class Segment:
    """A stretch of one kind; `name` is the function's where it is a call."""

    kind: str
    text: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    reasoning: str
    content: str
    calls: list[ToolCall]
    segments: list[Segment] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of `reasoning`, `content` or a `call`, of which the first one has the function's name."""

    kind: str
    text: str
    call: int = 0
    name: str | None = None


class Reader:
    """Reads one choice of the answer to a chat, in pieces; what it returns does not depend on how the text is cut."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        """`request` is a chat's, as it is stored."""
        self.tools = ToolUse(request)
        parsers = request.get(PARSERS) or {}
        self._reasoning = ReasoningStream(REASONING.get(parsers.get("reasoning", "")), parsers.get("opened", False))
        self._stream: ToolCallStream | _Named | None = None
        if self.tools.mode == "named":
            self._stream = _Named(self.tools.name)
        elif self.tools.mode != "none":
            formats = TOOL_CALLS.get(parsers.get("tool_calls", ""), ANY)
            if self.tools.forced or holds_a_form(request):
                formats = (LISTED,) if self.tools.forced else (LISTED, HERMES)
            self._stream = ToolCallStream(self.tools.functions, formats)

    def feed(self, text: str) -> list[Part]:
        reasoning, rest = self._reasoning.feed(text)
        return self._parts(reasoning, self._called(rest, final=False))

    def finish(self) -> list[Part]:
        reasoning, rest = self._reasoning.finish()
        return self._parts(reasoning, self._called(rest, final=True))

    def _called(self, text: str, final: bool) -> list[Piece]:
        if self._stream is None:
            return [Piece(text)] if text else []
        pieces = self._stream.feed(text) if text else []
        return [*pieces, *self._stream.finish()] if final else pieces

    def _parts(self, reasoning: str, pieces: Iterable[Piece]) -> list[Part]:
        made = [Part("reasoning", reasoning)] if reasoning else []
        for piece in pieces:
            if piece.call is None:
                # Text that was held to the form of calls and is none is no answer.
                if not self.tools.forced:
                    made.append(Part("content", piece.text))
            elif not (self.tools.one and piece.call):
                made.append(Part("call", piece.text, piece.call, piece.name))
        return made


class _Named:
    """All text is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name
        self._space = ""

    def feed(self, text: str) -> list[Piece]:
        text = self._space + text
        if self._name is not None:
            text = text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if not kept:
            return []
        name, self._name = self._name, None
        return [Piece(kept, 0, name)]

    def finish(self) -> list[Piece]:
        # Cut off at once it is no JSON, and OpenAI hands it over all the same.
        return [] if self._name is None else [Piece("", 0, self._name)]


def read(text: str, request: Mapping[str, Any]) -> Written:
    """A whole choice of the answer to a chat."""
    reader = Reader(request)
    parts = [*reader.feed(text), *reader.finish()]
    pieces = [Piece(part.text, part.call, part.name) for part in parts if part.kind == "call"]
    return Written(
        "".join(part.text for part in parts if part.kind == "reasoning"),
        "".join(part.text for part in parts if part.kind == "content"),
        collected(pieces).calls,
        segments_of(parts),
    )


def segments_of(parts: Sequence[Part]) -> list[Segment]:
    found: list[Segment] = []
    for part in parts:
        if begins_segment(part, found[-1].kind if found else ""):
            found.append(Segment(part.kind, name=part.name or ""))
        found[-1].text += part.text
    return found


def begins_segment(part: Part, before: str) -> bool:
    return part.name is not None if part.kind == "call" else part.kind != before


def holds_a_form(request: Mapping[str, Any]) -> bool:
    form = request.get("response_format") or {}
    return bool(form.get("type", "text") != "text")
