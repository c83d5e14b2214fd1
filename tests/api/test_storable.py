"""What Postgres cannot hold is found wherever it is, and a long list of numbers is not walked for it."""

import json
import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from app.storable import MAX_JSON_NODES, MAX_JSON_VALUES, TooManyValues, check_document, parsed_json


@pytest.mark.parametrize(
    "document", [{}, [], "x", 1.5, None, True, {"a": [1, [2, {"b": "c"}], None]}, {"a": {"b": [1.5, "x", False]}}]
)
def test_what_can_be_stored_is_given_back(document: Any) -> None:
    assert check_document(document) is document


@pytest.mark.parametrize("at", [lambda bad: bad, lambda bad: {"a": bad}, lambda bad: [1, [2, [3, "x", bad]]],
                                lambda bad: {"a": [{"b": {"c": [1, bad]}}]}])  # fmt: skip
@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("a\x00b", "nul_character"),
        ({"a\x00": 1}, "nul_character"),
        (math.inf, "number_too_large"),
        (-math.inf, "number_too_large"),
    ],
)
def test_what_cannot_is_found_wherever_it_is(at: Any, bad: Any, kind: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        check_document(at(bad))
    assert caught.value.type == kind


def steps(call: Callable[[], object]) -> int:
    """How many instructions of Python a call comes to: unlike its time, nothing else on the machine changes that."""
    taken = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal taken
        frame.f_trace_opcodes = True
        taken += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return taken


def test_a_body_of_integers_is_checked_without_walking_it() -> None:
    document = {"a": [1] * 50_000}
    assert steps(lambda: all(isinstance(each, int) for each in document["a"])) > 50_000
    assert steps(lambda: check_document(document)) < 1_000


N, V = MAX_JSON_NODES, MAX_JSON_VALUES
LEGAL = {
    "lists": [[]] * (N - 1),
    "objects": [{}] * (N - 1),
    "keys": {f"k{n}": n for n in range(N - 1)},
    "numbers": [1] * V,
    "texts": ["x"] * V,
    "signs within a text": '[{"a\\": 1,\\\\' * 100_000,
    "signs within many texts": [":,[{}]" + chr(34)] * V,
}
TOO_MANY = {
    "lists": [[]] * N,
    "objects": [{}] * N,
    "keys": {f"k{n}": n for n in range(N)},
    "numbers": [1] * (V + 1),
    "texts": [""] * 1_000_000,
    "lists after a text": ["\\", chr(34), *[[]] * N],
}


@pytest.mark.parametrize("kind", LEGAL)
def test_as_many_values_as_are_taken_in_are(kind: str) -> None:
    assert parsed_json(json.dumps(LEGAL[kind]).encode()) == LEGAL[kind]


@pytest.mark.parametrize("kind", TOO_MANY)
def test_one_value_too_many_is_refused_before_it_is_parsed(kind: str) -> None:
    with pytest.raises(TooManyValues, match="holds more than 32,000 lists, objects and keys"):
        parsed_json(json.dumps(TOO_MANY[kind]).encode())


@pytest.mark.parametrize("text", [b"[" * 40_000, b'["' + b"\\" * 40_001, b"[1," * 10_000 + b'"' * 30_001])
def test_what_is_no_json_is_named_so(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"line|holds"):
        parsed_json(text)
