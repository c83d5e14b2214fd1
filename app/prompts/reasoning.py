"""Tells a model's reasoning from its answer, in whole texts and in streams: pure."""

from __future__ import annotations

from collections.abc import Iterable

from app.prompts.families import Reasoning


def beginning_at_the_end(text: str, tokens: Iterable[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of the tokens."""
    return max(
        (
            length
            for token in tokens
            for length in range(1, min(len(token), len(text) + 1))
            if text.endswith(token[:length])
        ),
        default=0,
    )


class ReasoningStream:
    """What `feed` and `finish` return, put together, is the same however the text is cut."""

    def __init__(self, family: Reasoning | None, opened: bool = False) -> None:
        """`opened`: the prompt ended with the beginning of the reasoning already."""
        self._family = family
        self._inside = opened and family is not None
        self._text = ""
        # Space at the edges of either part belongs to neither.
        self._fresh = family is not None
        self._looking = family is not None

    def feed(self, text: str) -> tuple[str, str]:
        """More text; returns what is certainly reasoning, and what is certainly answer."""
        if self._family is None:
            return "", text
        self._text += text
        return self._take(final=False)

    def finish(self) -> tuple[str, str]:
        return self._take(final=True) if self._family is not None else ("", "")

    def _take(self, final: bool) -> tuple[str, str]:
        assert self._family is not None
        family, told = self._family, ["", ""]
        while True:
            if self._fresh:
                self._text = self._text.lstrip()
                if not self._text:
                    break
            tokens = self._tokens(family)
            place, token = min(
                ((found, each) for each in tokens if (found := self._text.find(each)) >= 0),
                default=(-1, ""),
                key=lambda pair: (pair[0], -len(pair[1])),
            )
            if token and not self._inside and not family.anywhere and place > 0:
                # The answer has begun already.
                place, token = -1, ""
            if not token:
                told[not self._inside] += self._certain(tokens, final)
                break
            if place:
                told[not self._inside] += self._text[:place].rstrip() if self._inside else self._text[:place]
                self._fresh = False
            self._text = self._text[place + len(token) :]
            if self._inside or token == family.start:
                self._inside = not self._inside
                self._looking = self._inside or family.anywhere
                self._fresh = True
        return told[0], told[1]

    def _tokens(self, family: Reasoning) -> tuple[str, ...]:
        if self._inside:
            return (family.end,)
        return (family.start, *family.dropped) if self._looking else ()

    def _certain(self, tokens: tuple[str, ...], final: bool) -> str:
        """Takes what no token can begin in any more."""
        held = 0 if final else beginning_at_the_end(self._text, tokens)
        if not self._inside and self._family is not None and not self._family.anywhere and held < len(self._text):
            # Something else than the reasoning came first.
            held, self._looking = 0, False
        end = len(self._text) - held
        if self._inside:
            end = len(self._text[:end].rstrip())
        taken, self._text = self._text[:end], "" if final else self._text[end:]
        if taken:
            self._fresh = False
        return taken


def split(text: str, family: Reasoning | None, opened: bool = False) -> tuple[str, str]:
    """A whole text's reasoning and answer."""
    stream = ReasoningStream(family, opened)
    first, last = stream.feed(text), stream.finish()
    return first[0] + last[0], first[1] + last[1]
