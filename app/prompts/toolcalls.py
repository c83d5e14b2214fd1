"""Tool calls in generated text, in whole texts and in streams: pure. How they are written is told by `families`.

What only looks like a call stays text. Once its function is named it is a call, even where the arguments are cut off or
are no JSON: they are handed over as the model wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from app.prompts.arguments import JsonScan, ToolCall, call_of, is_closed, json_of, typed, unescaped, unquoted
from app.prompts.families import ANY, Format
from app.prompts.reasoning import beginning_at_the_end

# Mistral's templates take no other length.
ID_CHARS = 9
# A call whose function is not named within so many characters is none.
HEADER_CHARS = 800


@dataclass(frozen=True, slots=True)
class Parsed:
    content: str
    calls: list[ToolCall]


class Piece(NamedTuple):
    """A piece of content where `call` is None, else of the arguments of that call; `name` comes with its first."""

    text: str
    call: int | None = None
    name: str | None = None


def call_id(seed: str, choice: int, number: int) -> str:
    """The id of a call: the same each time the answer is rendered."""
    digest = int.from_bytes(sha256(f"{seed}.{choice}.{number}".encode()).digest()[:8])
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "".join(digits[digest // 36**place % 36] for place in range(ID_CHARS))


def parse(text: str, functions: Mapping[str, Any], formats: Sequence[Format] = ANY) -> Parsed:
    """The content of a whole text, and its calls; `functions` are those there are, by name."""
    stream = ToolCallStream(functions, formats)
    return collected([*stream.feed(text), *stream.finish()])


def collected(pieces: Sequence[Piece]) -> Parsed:
    content, calls = "", dict[int, list[str]]()
    for piece in pieces:
        if piece.call is None:
            content += piece.text
        elif piece.name is not None:
            calls[piece.call] = [piece.name, piece.text]
        else:
            calls[piece.call][1] += piece.text
    return Parsed(content, [ToolCall(name, arguments) for name, arguments in calls.values()])


class ToolCallStream:
    """Takes a text in pieces; what it returns, put together, is the same however the text is cut."""

    def __init__(self, functions: Mapping[str, Any], formats: Sequence[Format] = ANY) -> None:
        self._functions = functions
        self._marked = [each for each in formats if each.marker]
        self._unmarked = [each for each in formats if not each.marker]
        self._markers = tuple({each.marker: None for each in self._marked})
        self._text = ""
        self._state = self._beginning
        self._formats: list[Format] = []
        # The marker of the call that is being read, which is text if it is none.
        self._begun = ""
        self._value = JsonScan()
        self._sent = 0
        self._count = 0
        self._said = False
        self._after_call = False
        self._final = False

    def feed(self, text: str) -> list[Piece]:
        self._text += text
        return self._run()

    def finish(self) -> list[Piece]:
        self._final = True
        return self._run()

    def _run(self) -> list[Piece]:
        pieces: list[Piece] = []
        while self._state(pieces):
            pass
        return pieces

    # Each state takes what it can from the front of the text; False when it needs more of it.

    def _beginning(self, pieces: list[Piece]) -> bool:
        """Before any text: without a marker, calls can be only here."""
        start = self._text.lstrip()
        if not start and not self._final:
            return False
        self._state = self._content
        for each in self._unmarked:
            found = self._header(each, start)
            if (
                found is None
                and not self._final
                and start[0] in "{["
                and len(start) < HEADER_CHARS
                and not is_closed(start)
            ):
                self._state = self._beginning
                return False
            if found is not None and found[1] in self._functions:
                self._formats, self._begun, self._text = [each], "", start
                self._state = self._call
                return True
        return True

    def _content(self, pieces: list[Piece]) -> bool:
        if self._after_call and not self._final and not self._text.strip():
            return False
        found = [(place, marker) for marker in self._markers if (place := self._text.find(marker)) >= 0]
        if found:
            place, marker = min(found)
            self._say(self._text[:place].rstrip(), pieces)
            # The space before a call belongs to neither; before what is none, it is text.
            space = self._text[len(self._text[:place].rstrip()) : place]
            self._text = self._text[place + len(marker) :]
            self._begun = space + marker
            self._formats = [each for each in self._marked if each.marker == marker]
            self._state = self._call
            return True
        held = 0 if self._final else beginning_at_the_end(self._text, self._markers)
        end = len(self._text) - held
        if not self._final:
            end = len(self._text[:end].rstrip())
        self._say(self._text[:end], pieces)
        self._text = self._text[end:]
        return False

    def _call(self, pieces: list[Piece]) -> bool:
        """Behind a marker, or where another call may follow without one."""
        for each in self._formats:
            if each.pairs is not None:
                if self._pairs(each, pieces):
                    return True
                continue
            found = self._header(each, self._text)
            if found is not None:
                end, name, bare = found
                self._formats = [each]
                self._begin(name, "{}" if bare else "", pieces)
                self._text = self._text[end:]
                if bare:
                    self._state = self._between
                else:
                    self._value, self._sent, self._state = JsonScan(), 0, self._arguments
                return True
        if self._undecided():
            return False
        whole = self._object()
        if whole is not None:
            end, call = whole
            self._begin(call.name, call.arguments, pieces)
            self._text, self._state = self._text[end:], self._between
            return True
        self._text = self._begun + self._text
        self._begun, skipped = "", len(self._text) - len(self._text.lstrip())
        # What begins here is no call: on behind its marker.
        marker = next((each for each in self._markers if self._text.startswith(each, skipped)), "")
        self._say(self._text[: skipped + len(marker)], pieces)
        self._text = self._text[skipped + len(marker) :]
        self._state = self._content
        return True

    def _undecided(self) -> bool:
        if self._final:
            return False
        if any(each.pairs is not None for each in self._formats):
            return not any(each.end in self._text for each in self._formats)
        start = self._text.lstrip()
        return len(start) < HEADER_CHARS and not (start[:1] in ("{", "[") and is_closed(start))

    def _arguments(self, pieces: list[Piece]) -> bool:
        quoted = self._text.startswith('"')
        self._value.scan(self._text)
        end = self._value.end
        if end is None and not self._final:
            if not quoted:
                self._more(self._text[self._sent :], pieces)
                self._sent = len(self._text)
            return False
        if quoted and end is not None:
            # Some models quote the JSON once more.
            self._more(unquoted(self._text[:end]), pieces)
        else:
            self._more(self._text[self._sent : end], pieces)
        self._text = "" if end is None else self._text[end:]
        self._state = self._between
        return True

    def _between(self, pieces: list[Piece]) -> bool:
        """Behind a call: to another, or to text."""
        (form,) = self._formats
        while True:
            start = self._text.lstrip()
            token = next((each for each in form.between if start.startswith(each)), "")
            if not token:
                break
            self._text = start[len(token) :]
        if not self._final and (not start or any(each.startswith(start) for each in form.between)):
            return False
        self._after_call, self._begun = True, ""
        self._state = self._content
        if form.again and start[:1] in ("{", "[", "<"):
            found = self._header(form, start)
            if found is not None and (form.marker or found[1] in self._functions):
                self._text, self._state = start, self._call
            elif not self._final and len(start) < HEADER_CHARS and not is_closed(start):
                self._state = self._between
                return False
        return True

    def _header(self, form: Format, text: str) -> tuple[int, str, bool] | None:
        """Where the arguments begin, the function's name, and whether there are none."""
        match = form.header.match(text[: HEADER_CHARS + 1])
        if match is None or form.pairs is not None:
            return None
        groups = match.groupdict()
        quoted = groups.get("name")
        name = unescaped(quoted) if quoted is not None else groups["bare"]
        return match.end(), name, groups.get("none") is not None

    def _pairs(self, form: Format, pieces: list[Piece]) -> bool:
        end = self._text.find(form.end)
        if end < 0 and not self._final:
            return False
        match = form.header.match(self._text)
        if match is None:
            return False
        assert form.pairs is not None
        body = self._text[match.end() : None if end < 0 else end]
        name = match["bare"]
        given = {key.strip(): value for key, value in form.pairs.findall(body)}
        self._formats = [form]
        self._begin(name, typed(given, self._functions.get(name)), pieces)
        self._text = "" if end < 0 else self._text[end + len(form.end) :]
        self._state = self._between
        return True

    def _object(self) -> tuple[int, ToolCall] | None:
        """A call whose fields stand in another order."""
        start = len(self._text) - len(self._text.lstrip())
        if not self._text.startswith("{", start):
            return None
        value = JsonScan(start)
        value.scan(self._text)
        call = None if value.end is None else call_of(json_of(self._text[start : value.end]))
        return None if call is None or value.end is None else (value.end, call)

    def _say(self, text: str, pieces: list[Piece]) -> None:
        if self._after_call and text:
            text = ("\n" if self._said else "") + text.lstrip()
            self._after_call = False
        if text:
            self._said = True
            pieces.append(Piece(text))

    def _begin(self, name: str, arguments: str, pieces: list[Piece]) -> None:
        pieces.append(Piece(arguments, self._count, name))
        self._count += 1

    def _more(self, text: str, pieces: list[Piece]) -> None:
        if text:
            pieces.append(Piece(text, self._count - 1))
