"""Log probabilities of tokens, from what the engine returns to OpenAI's two shapes.

The engine returns for each token {token id: {logprob, rank, decoded_token, chosen}}, the one that was taken and its
likeliest alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What a model thinks impossible: JSON has no -Infinity, and OpenAI uses this number.
LOWEST = -9999.0
REPLACEMENT = "\ufffd"

Token = dict[str, dict[str, Any]]


def of_chat(tokens: Sequence[Token] | None, alternatives: int) -> dict[str, Any] | None:
    """The `logprobs` of a chat's choice or chunk."""
    if tokens is None:
        return None
    content = []
    for token in tokens:
        chosen = _entry(_chosen(token))
        content.append(chosen | {"top_logprobs": [_entry(each) for each in _likeliest(token, alternatives)]})
    return {"content": content, "refusal": None}


def of_completion(tokens: Sequence[Token] | None, alternatives: int, offset: int = 0) -> dict[str, Any] | None:
    """The `logprobs` of a completion's choice or chunk that begins `offset` characters into the text."""
    if tokens is None:
        return None
    shape: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        chosen = _chosen(token)
        text = _text(chosen)
        first = _is_first(chosen)
        shape["tokens"].append(text)
        shape["token_logprobs"].append(None if first else _number(chosen))
        shape["text_offset"].append(offset)
        likely = {_text(each): _number(each) for each in (*reversed(_likeliest(token, alternatives)), chosen)}
        shape["top_logprobs"].append(None if first else likely)
        offset += len(text)
    return shape


def of_prompt(tokens: Sequence[Token], alternatives: int) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: the tokens by id."""
    shown: list[dict[str, Any] | None] = []
    for token in tokens:
        chosen = _chosen(token)
        likely = [*_likeliest(token, alternatives), chosen]
        entries = {id_: _plain(entry) for id_, entry in token.items() if any(entry is each for each in likely)}
        shown.append(None if _is_first(chosen) else entries)
    return shown


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    return {"logprob": _number(entry), "rank": entry.get("rank"), "decoded_token": _text(entry)}


def _is_first(chosen: dict[str, Any]) -> bool:
    """Whether it is the first of a prompt, of which an engine tells no log probability."""
    return chosen.get("logprob") is None


def _chosen(token: Token) -> dict[str, Any]:
    entries = list(token.values())
    return next((entry for entry in entries if entry.get("chosen")), entries[0])


def _likeliest(token: Token, count: int) -> list[dict[str, Any]]:
    return sorted(token.values(), key=_number, reverse=True)[:count]


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    text = _text(entry)
    # Half a character has no text, and its bytes are not told.
    return {
        "token": text,
        "logprob": _number(entry),
        "bytes": None if REPLACEMENT in text else list(text.encode()),
    }


def _text(entry: dict[str, Any]) -> str:
    return str(entry.get("decoded_token") or "")


def _number(entry: dict[str, Any]) -> float:
    found = entry.get("logprob")
    return LOWEST if found is None else max(float(found), LOWEST)
