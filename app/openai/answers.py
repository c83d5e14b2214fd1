"""What the answers of all endpoints have in common: a row's model, choices and usage, and how each kind is rendered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from app.services.streams import Delta

Row = Mapping[str, Any]


class Chunks(Protocol):
    """Makes the chunks of one stream, from its start."""

    def start(self) -> list[dict[str, Any]]: ...

    def delta(self, delta: Delta) -> list[dict[str, Any]]: ...

    def end(self, row: Mapping[str, Any]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Face:
    """One kind of object: how a completed result is rendered, and how its stream is.

    `chunks` takes the result's id, when it was made (Unix seconds), the model, the stored request, and whether the
    usage is asked for; where several prompts may be streamed together, also the index of its first choice.
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
    prompt, completion = row["prompt_tokens"] or 0, row["completion_tokens"] or 0
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
