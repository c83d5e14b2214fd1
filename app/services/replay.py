"""From stored events to what a follower is sent: pure, and the same whoever reads them and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.queue.ticket import Status


@dataclass(slots=True)
class Delta:
    """What one choice goes on with; `logprobs` are those of the tokens of `text`, where they were asked for.

    `tokens` is how many the choice has come to with it, None where that was not told.
    """

    index: int
    text: str
    logprobs: list[dict[str, Any]] | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None


class Addition(NamedTuple):
    """What an event adds: to texts, or whole responses of a model that takes tensors, as their result has `outputs`."""

    deltas: list[Delta]
    outputs: list[Mapping[str, Any]]

    def __bool__(self) -> bool:
        return bool(self.deltas or self.outputs)


@dataclass(slots=True)
class _Choice:
    """What the attempt that speaks now has said, and how much of that was sent."""

    said: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    sent: str = ""
    sent_tokens: int = 0
    tokens: int | None = None

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

    def delta(self, index: int, prompt_tokens: int | None) -> Delta | None:
        """What goes beyond the text that was sent."""
        text, logprobs = self.said[len(self.sent) :], self.logprobs[self.sent_tokens :]
        if not text and not logprobs:
            return None
        if text:
            self.sent = self.said
        self.sent_tokens += len(logprobs)
        return Delta(index, text, logprobs or None, self.tokens, prompt_tokens)


@dataclass(slots=True)
class _Outputs:
    """As _Choice, of tensors: each names the response that it belongs to, and those of one response come together."""

    said: list[Mapping[str, Any]] = field(default_factory=list)
    sent: list[Mapping[str, Any]] = field(default_factory=list)

    def take(self, outputs: Sequence[Mapping[str, Any]]) -> None:
        following = self.said[-1]["response"] + 1 if self.said else 0
        if outputs and outputs[0]["response"] == following:
            self.said += outputs

    def agrees(self, final: bool = False) -> bool:
        shared = min(len(self.said), len(self.sent))
        return self.said[:shared] == self.sent[:shared] and not (final and len(self.said) < len(self.sent))

    def forget_said(self) -> None:
        self.said = []

    def forget_sent(self) -> None:
        self.sent = []

    def rest(self) -> list[Mapping[str, Any]]:
        """What goes beyond what was sent."""
        outputs = self.said[len(self.sent) :]
        self.sent += outputs
        return outputs


class Replay:
    """Takes the events of one result in order and tells what each adds to what was sent.

    A later attempt says everything anew: what it repeats is not sent again. Where it says something else, a new
    `telling` of the text begins, and what was sent before is void.
    """

    def __init__(self) -> None:
        self.telling = 0
        self._choices: dict[int, _Choice] = {}
        self._outputs = _Outputs()
        self._prompt_tokens: int | None = None

    def add(self, entries: Sequence[Mapping[str, Any]]) -> Addition:
        """A stored event; nothing where it only repeats."""
        if any("response" in entry for entry in entries):
            if entries[0]["response"] == 0:
                self._outputs.forget_said()
            self._outputs.take(entries)
            return self._addition(self._outputs.agrees())
        if any(entry["at"] == 0 and entry["text"] and self._choice(entry).said for entry in entries):
            for choice in self._choices.values():
                choice.forget_said()
        for entry in entries:
            self._choice(entry).take(entry["at"], entry["text"], entry.get("token", 0), entry.get("logprobs"))
            self._choice(entry).tokens = entry.get("tokens")
            self._prompt_tokens = entry.get("prompt_tokens", self._prompt_tokens)
        return self._addition(all(choice.agrees() for choice in self._choices.values()))

    def end(self, row: Mapping[str, Any]) -> Addition:
        """The final result's row: what it has beyond the stored events.

        A failed result may have less, or another attempt's text: that is no new telling, for it is no answer.
        """
        agrees = True
        # How many tokens each of several choices came to is not kept.
        tokens = None if row["outputs"] else row.get("completion_tokens")
        for output in row["outputs"] or ([] if row["output"] is None else [{"index": 0, "text": row["output"]}]):
            choice = self._choice(output)
            choice.tokens = tokens
            if row["status"] == Status.COMPLETED or output["text"].startswith(choice.sent):
                choice.said, choice.logprobs = output["text"], list(output.get("logprobs") or ())
                agrees = agrees and choice.agrees(final=True)
        if tensors := (row.get("answer") or {}).get("outputs"):
            sent = self._outputs.sent
            if row["status"] == Status.COMPLETED or tensors[: len(sent)] == sent:
                self._outputs.said = list(tensors)
                agrees = agrees and self._outputs.agrees(final=True)
        return self._addition(agrees)

    def _choice(self, entry: Mapping[str, Any]) -> _Choice:
        return self._choices.setdefault(entry["index"], _Choice())

    def _addition(self, agrees: bool) -> Addition:
        if not agrees:
            self.telling += 1
            for choice in self._choices.values():
                choice.forget_sent()
            self._outputs.forget_sent()
        deltas = (choice.delta(index, self._prompt_tokens) for index, choice in sorted(self._choices.items()))
        return Addition([delta for delta in deltas if delta is not None], self._outputs.rest())
