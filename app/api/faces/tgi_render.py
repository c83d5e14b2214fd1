"""Rows as TGI's answers and tokens, and errors in its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.errors import AppError, InvalidRequest, ServiceStopping, StreamRestarted
from app.openai.answers import Row, choices_of
from app.openai.failures import GenerationFailed
from app.services.streams import Delta


def render(row: Row, request: Mapping[str, Any]) -> dict[str, Any]:
    """A completed result; of several texts the one with the highest log probability per token comes first."""
    choices = sorted(choices_of(row), key=_likelihood, reverse=True) if request.get("best_of") else choices_of(row)
    answer: dict[str, Any] = {"generated_text": request.get("inputs", "") + choices[0]["text"]}
    if request.get("details"):
        details = _details(choices[0], request)
        if len(choices) == 1:
            details["generated_tokens"] = row["completion_tokens"] or details["generated_tokens"]
        else:
            details["best_of_sequences"] = [
                {"generated_text": request.get("inputs", "") + each["text"], **_details(each, request)}
                for each in choices[1:]
            ]
        answer["details"] = details
    return answer


def _likelihood(choice: Mapping[str, Any]) -> float:
    tokens = [_chosen(token)[1].get("logprob") for token in choice["logprobs"] or ()]
    known = [float(each) for each in tokens if each is not None]
    return sum(known) / len(known) if known else float("-inf")


def _details(choice: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    engine_tokens = choice["logprobs"] or []
    tokens = tokens_of(engine_tokens, choice["text"])
    details = {
        "finish_reason": finish_reason(choice["text"], choice["finish_reason"], request),
        "generated_tokens": len(tokens),
        "seed": request.get("seed"),
        "prefill": [],
        "tokens": tokens,
    }
    if request.get("top_n_tokens"):
        details["top_tokens"] = [_top(token, request["top_n_tokens"]) for token in engine_tokens]
    return details


def finish_reason(text: str, reason: str | None, request: Mapping[str, Any]) -> str:
    if reason == "length":
        return "length"
    return "stop_sequence" if text.endswith(tuple(request.get("stop") or ())) else "eos_token"


def tokens_of(engine_tokens: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """The tokens of a piece of text; their texts together are the piece.

    Where the engine's do not add up to it (half characters, an end that is not shown), the last token has it whole.
    """
    tokens = [_token(*_chosen(token)) for token in engine_tokens]
    if tokens and "".join(token["text"] for token in tokens) != text:
        *before, last = tokens
        if "".join(token["text"] for token in before) == text:
            last |= {"text": "", "special": True}
        else:
            for token in before:
                token["text"] = ""
            last["text"] = text
    return tokens


def _chosen(token: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    entries = list(token.items())
    return next((entry for entry in entries if entry[1].get("chosen")), entries[0])


def _token(id_: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": int(id_),
        "text": str(entry.get("decoded_token") or ""),
        "logprob": entry.get("logprob"),
        "special": False,
    }


def _top(token: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    alternatives = [_token(*entry) for entry in token.items()]
    return sorted(alternatives, key=lambda each: each["logprob"] or float("-inf"), reverse=True)[:count]


class StreamTokens:
    """Makes the events of one stream: one for each token, and a last one that carries the whole text."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self._count = 0
        self._last = 0

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        tokens = tokens_of(delta.logprobs or (), delta.text)
        if not tokens:
            # The engine names no tokens: the piece is one.
            tokens = [{"id": 0, "text": delta.text, "logprob": 0.0, "special": False}]
        events = []
        for place, token in enumerate(tokens):
            event = self._event(token)
            if self._request.get("top_n_tokens") and delta.logprobs:
                event["top_tokens"] = _top(delta.logprobs[place], self._request["top_n_tokens"])
            events.append(event)
        return events

    def end(self, row: Row) -> dict[str, Any]:
        """The end as a token of its own without text, as the end of a model's text is one."""
        choice = choices_of(row)[0]
        return self._event({"id": self._last, "text": "", "logprob": 0.0, "special": True}) | {
            "generated_text": self._request.get("inputs", "") + choice["text"],
            "details": {
                "finish_reason": finish_reason(choice["text"], choice["finish_reason"], self._request),
                "generated_tokens": row["completion_tokens"] or self._count - 1,
                "input_length": row["prompt_tokens"] or 0,
                "seed": self._request.get("seed"),
            },
        }

    def _event(self, token: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        self._last = token["id"]
        return {"index": self._count, "token": token, "generated_text": None, "details": None}


def tgi_status(error: AppError) -> int:
    """TGI has 424 for every generation that failed."""
    return 424 if isinstance(error, GenerationFailed) else error.status


def tgi_error(error: AppError) -> dict[str, Any]:
    """An error as TGI's clients read it; other kinds than TGI knows have our code."""
    if isinstance(error, InvalidRequest):
        kind, text = "validation", f"Input validation error: {error.detail}"
    elif isinstance(error, GenerationFailed):
        kind, text = "generation", f"Request failed during generation: {error.detail}"
    elif isinstance(error, (ServiceStopping, StreamRestarted)):
        kind, text = "incomplete_generation", error.detail
    elif error.status == 429:
        kind, text = "overloaded", error.detail
    else:
        kind, text = error.code, error.detail
    return {"error": text, "error_type": kind}
