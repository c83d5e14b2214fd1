"""From stored events to what a follower is sent: pure, and the same whoever reads them and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.queue.ticket import Status


@dataclass(frozen=True, slots=True)
class Delta:
    """What one choice goes on with; `logprobs` are those of the tokens of `text`, where they were asked for."""

    index: int
    text: str
    logprobs: list[dict[str, Any]] | None = None


@dataclass(slots=True)
class _Choice:
    """What the attempt that speaks now has said, and how much of that was sent."""

    said: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    sent: str = ""
    sent_tokens: int = 0

    def take(self, at: int, text: str, token: int, logprobs: Sequence[dict[str, Any]] | None) -> None:
        """Goes on from `at`; what would leave a hole is left out, the final text has it."""
        if at <= len(self.said):
            self.said = self.said + text if at == len(self.said) else self.said[:at] + text
        if logprobs and token <= len(self.logprobs):
            self.logprobs[token:] = logprobs

    def agrees(self, final: bool = False) -> bool:
        """Whether what is said now goes on with what was sent before, or so far repeats it."""
        return self.said.startswith(self.sent) or (not final and self.sent.startswith(self.said))

    def forget_said(self) -> None:
        self.said, self.logprobs = "", []

    def forget_sent(self) -> None:
        self.sent, self.sent_tokens = "", 0

    def delta(self, index: int) -> Delta | None:
        """What goes beyond the text that was sent."""
        text, logprobs = self.said[len(self.sent) :], self.logprobs[self.sent_tokens :]
        if not text and not logprobs:
            return None
        if text:
            self.sent = self.said
        self.sent_tokens += len(logprobs)
        return Delta(index, text, logprobs or None)


class Replay:
    """Takes the events of one result in order and tells what each adds to what was sent.

    A later attempt says everything anew: what it repeats is not sent again. Where it says something else, a new
    `telling` of the text begins, and what was sent before is void.
    """

    def __init__(self) -> None:
        self.telling = 0
        self._choices: dict[int, _Choice] = {}

    def add(self, choices: Sequence[Mapping[str, Any]]) -> list[Delta]:
        """A stored event; nothing where it only repeats."""
        if any(entry["at"] == 0 and entry["text"] and self._choice(entry).said for entry in choices):
            for choice in self._choices.values():
                choice.forget_said()
        for entry in choices:
            self._choice(entry).take(entry["at"], entry["text"], entry.get("token", 0), entry.get("logprobs"))
        return self._deltas(all(choice.agrees() for choice in self._choices.values()))

    def end(self, row: Mapping[str, Any]) -> list[Delta]:
        """The final result's row: what it has beyond the stored events.

        A failed result may have less, or another attempt's text: that is no new telling, for it is no answer.
        """
        agrees = True
        for output in row["outputs"] or ([] if row["output"] is None else [{"index": 0, "text": row["output"]}]):
            choice = self._choice(output)
            if row["status"] == Status.COMPLETED or output["text"].startswith(choice.sent):
                choice.said, choice.logprobs = output["text"], list(output.get("logprobs") or ())
                agrees = agrees and choice.agrees(final=True)
        return self._deltas(agrees)

    def _choice(self, entry: Mapping[str, Any]) -> _Choice:
        return self._choices.setdefault(entry["index"], _Choice())

    def _deltas(self, agrees: bool) -> list[Delta]:
        if not agrees:
            self.telling += 1
            for choice in self._choices.values():
                choice.forget_sent()
        deltas = (choice.delta(index) for index, choice in sorted(self._choices.items()))
        return [delta for delta in deltas if delta is not None]
