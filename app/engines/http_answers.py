"""What the answers of HTTP servers have in common: texts, counts and tokens, none of them believed unseen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# More cannot be counted in the database, and is a lie.
MAX_TOKENS = 2**31 - 1
MAX_ALTERNATIVES = 1000
MAX_TOLD = 300
_LENGTH_OF_LOGPROB = 80


def text_of(value: Any) -> str:
    """Raises ValueError for what is neither a text nor null."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("a text that is none")
    return value


def told(document: Any, name: str) -> str:
    """A field of a description, such as a version; empty where it is no text, or too long for one."""
    value = document.get(name) if isinstance(document, dict) else None
    return value.replace("\x00", "\ufffd") if isinstance(value, str) and len(value) <= MAX_TOLD else ""


def count_of(value: Any) -> int | None:
    """A number of tokens; None for what cannot be one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS else None


def token_of(chosen: Mapping[str, Any], alternatives: Any) -> dict[str, Any]:
    """`{id: {logprob, rank, decoded_token, chosen}}` of `{"id", "token", "logprob"}`, alternatives the likeliest first.

    A token whose id is not told goes by its text.

    Raises:
        ValueError: they have another form.
    """
    taken = _key(chosen)
    token = {taken: _entry(chosen) | {"chosen": True}}
    for rank, entry in enumerate((alternatives or ())[:MAX_ALTERNATIVES], 1):
        if not isinstance(entry, dict):
            raise ValueError("an alternative that is no object")
        key = _key(entry)
        if key == taken:
            token[taken]["rank"] = rank
        else:
            token[key] = _entry(entry) | {"rank": rank}
    return token


def likelihood_of(token: Mapping[str, Any]) -> float:
    """The log probability of the token that was taken."""
    return sum(entry["logprob"] or 0.0 for entry in token.values() if entry.get("chosen"))


def size_of(tokens: Sequence[Mapping[str, Any]]) -> int:
    """About how many bytes they are stored in."""
    return sum(map(len, tokens)) * _LENGTH_OF_LOGPROB


def _key(entry: Mapping[str, Any]) -> str:
    known = entry.get("id")
    return str(known) if isinstance(known, int) else text_of(entry.get("token")).replace("\x00", "\ufffd")


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    value = entry.get("logprob")
    if value is not None and not isinstance(value, int | float):
        raise ValueError("a logprob that is no number")
    # Postgres takes no NUL.
    return {"logprob": value, "decoded_token": text_of(entry.get("token")).replace("\x00", "\ufffd")}
