"""Text and JSON that Postgres can hold: no NUL characters, no numbers beyond a double."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def _text(value: str) -> str:
    if "\x00" in value:
        raise PydanticCustomError("nul_character", "must not contain NUL characters (\\u0000)")
    return value


def check_document(value: Any) -> Any:
    """Raises PydanticCustomError where something within cannot be stored."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            _text(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise PydanticCustomError("number_too_large", "holds a number outside the range of a double")
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return value


StorableText = Annotated[str, AfterValidator(_text)]
StorableObject = Annotated[dict[str, Any], AfterValidator(check_document)]
