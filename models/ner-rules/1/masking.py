"""Puts placeholders in the place of entities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def mask(text: str, spans: Sequence[dict[str, Any]], labels: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The text with a placeholder, such as `[PERSON_1]`, for each span with one of `labels`, and what each stands for.

    `spans` as `rules.find` returns them. The same entity has the same placeholder throughout.
    """
    wanted = {label.lower() for label in labels}
    parts: list[str] = []
    placeholders: dict[tuple[str, str], str] = {}
    end = 0
    for span in spans:
        if span["label"].lower() not in wanted:
            continue
        key = (span["label"].lower(), span["text"])
        if key not in placeholders:
            placeholders[key] = _placeholder(span["label"], text, placeholders.values())
        parts += [text[end : span["start"]], placeholders[key]]
        end = span["end"]
    return "".join([*parts, text[end:]]), {placeholder: key[1] for key, placeholder in placeholders.items()}


def _placeholder(label: str, text: str, taken: Any) -> str:
    """The next one of a label that the text does not contain already."""
    name = re.sub(r"\W+", "_", label.upper())
    number = 1
    while (placeholder := f"[{name}_{number}]") in text or placeholder in taken:
        number += 1
    return placeholder
