"""Text and JSON that Postgres can hold: no NUL characters, no numbers beyond a double."""

import math
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

_HARMLESS = frozenset({int, bool, type(None)})


def _text(value: str) -> str:
    if "\x00" in value:
        _refuse_nul()
    return value


def _refuse_nul() -> NoReturn:
    raise PydanticCustomError("nul_character", "must not contain NUL characters (\\u0000)")


def check_document(value: Any) -> Any:
    """Raises PydanticCustomError where something within cannot be stored."""
    pending: list[Any] = [[value]]
    while pending:
        items = pending.pop()
        # Millions of numbers are passed over by kind: looked at one by one, they would hold up every other request.
        kinds = set(map(type, items)) - _HARMLESS
        if float in kinds and not all(map(math.isfinite, (each for each in items if type(each) is float))):
            raise PydanticCustomError("number_too_large", "holds a number outside the range of a double")
        if str in kinds and "\x00" in "".join(each for each in items if type(each) is str):
            _refuse_nul()
        if kinds & {dict, list}:
            for each in items:
                if type(each) is dict:
                    pending += (list(each), list(each.values()))
                elif type(each) is list:
                    pending.append(each)
    return value


StorableText = Annotated[str, AfterValidator(_text)]
StorableObject = Annotated[dict[str, Any], AfterValidator(check_document)]
