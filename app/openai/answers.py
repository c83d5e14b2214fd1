"""What the answers of all endpoints have in common: a row's model, choices and usage, and how each kind is rendered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from app.services.streams import Delta

Row = Mapping[str, Any]


class StreamUsage(IntEnum):
    """Where a stream tells the usage."""

    NOWHERE = 0
    AT_END = 1
    IN_EACH = 2


class Chunks(Protocol):
    """Makes the chunks of one stream, from its start."""

    def start(self) -> list[dict[str, Any]]: ...

    def delta(self, delta: Delta) -> list[dict[str, Any]]: ...

    def end(self, row: Mapping[str, Any]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Face:
    """One kind of object: how a completed result is rendered, and how its stream is.

    `chunks` takes the result's id, when it was made (Unix seconds), the model, the stored request, and where
    the usage is asked for; where several prompts may be streamed together, also the index of its first choice.
    """

    kind: str
    path: str
    render: Callable[[Row, Mapping[str, Any]], dict[str, Any]]
    chunks: Callable[..., Chunks] | None = None


def model_of(row: Row, request: Mapping[str, Any]) -> str:
    """The id that was asked for: the row's model is what runs, whichever adapter it is asked for with."""
    return str(request.get("model") or row["model"])


def choices_of(row: Row) -> list[dict[str, Any]]:
    """Each choice of a completed result as index, text, finish_reason and, where asked for, logprobs."""
    if row["outputs"]:
        return [{**each, "finish_reason": each["finish_reason"] or row["finish_reason"]} for each in row["outputs"]]
    return [{"index": 0, "text": row["output"] or "", "finish_reason": row["finish_reason"], "logprobs": None}]


def usage_of(row: Row) -> dict[str, int]:
    return _usage(row["prompt_tokens"] or 0, row["completion_tokens"] or 0)


class RunningUsage:
    """What each choice of a stream has come to, for chunks that tell it as they go."""

    def __init__(self) -> None:
        self._of: dict[int, dict[str, int]] = {}

    def add(self, delta: Delta) -> None:
        if delta.tokens is None:
            self._of.pop(delta.index, None)
        else:
            self._of[delta.index] = _usage(delta.prompt_tokens or 0, delta.tokens)

    def end(self, row: Row) -> None:
        """The row tells what all choices came to together."""
        self._of = {} if row["outputs"] else {0: usage_of(row)}

    def of(self, index: int) -> dict[str, int] | None:
        """None where it is not known yet."""
        return self._of.get(index)


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
