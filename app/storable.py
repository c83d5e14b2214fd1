"""Text and JSON that Postgres can hold, and JSON that is taken in quickly.

No NUL characters, no numbers beyond a double, and no more values than a process takes in without a pause that others
would notice.
"""

import math
from itertools import chain
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, model_validator
from pydantic_core import PydanticCustomError, from_json

# A list, an object or a key costs about as much as ten numbers.
MAX_JSON_NODES = 32_000
MAX_JSON_VALUES = 250_000


class TooManyValues(ValueError):
    """JSON of more lists, objects, keys or values than are taken in."""

    def __init__(self) -> None:
        super().__init__(
            f"holds more than {MAX_JSON_NODES:,} lists, objects and keys, or more than {MAX_JSON_VALUES:,} values"
        )


def parsed_json(text: bytes) -> Any:
    """The value; neither NaN nor lone surrogates nor deep nesting.

    Raises:
        TooManyValues: it would take too long to take in.
        ValueError: it is not JSON.
    """
    _require_few_values(text)
    return from_json(text, allow_inf_nan=False)


def _require_few_values(text: bytes) -> None:
    """Counts the signs that separate values: far quicker than parsing them."""
    if len(text) <= MAX_JSON_NODES or _few_signs(text):
        return
    # Some may stand within strings. Without escapes, every second piece between quotes is outside of them.
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > 2 * (MAX_JSON_NODES + MAX_JSON_VALUES):
        raise TooManyValues
    if not _few_signs(b"".join(text.split(b'"')[::2])):
        raise TooManyValues


def _few_signs(text: bytes) -> bool:
    nodes = text.count(b"[") + text.count(b"{") + text.count(b":")
    return nodes <= MAX_JSON_NODES and text.count(b",") < MAX_JSON_VALUES


def _text(value: str) -> str:
    if "\x00" in value:
        _refuse_nul()
    return value


def _refuse_nul() -> NoReturn:
    raise PydanticCustomError("nul_character", "must not contain NUL characters (\\u0000)")


def check_document(value: Any) -> Any:
    """Raises PydanticCustomError where something within cannot be stored."""
    # All values of one depth at a time: container by container, thousands would hold up every other request.
    level = [value]
    while level:
        kinds = set(map(type, level))
        if float in kinds and not all(map(math.isfinite, (each for each in level if type(each) is float))):
            raise PydanticCustomError("number_too_large", "holds a number outside the range of a double")
        if str in kinds and "\x00" in "".join([each for each in level if type(each) is str]):
            _refuse_nul()
        objects = [each for each in level if type(each) is dict] if dict in kinds else []
        lists = (each for each in level if type(each) is list) if list in kinds else ()
        level = [*chain.from_iterable(objects), *chain.from_iterable(map(dict.values, objects)), *chain(*lists)]
    return value


class Storable(BaseModel):
    """A document of a client, all of which can be stored, what the model does not know included."""

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        return check_document(value)


StorableText = Annotated[str, AfterValidator(_text)]
StorableObject = Annotated[dict[str, Any], AfterValidator(check_document)]
