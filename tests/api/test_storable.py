"""What Postgres cannot hold is found wherever it is, and a document of millions of numbers takes no time for it."""

import json
import math
import time
from typing import Any

import pytest
from pydantic_core import PydanticCustomError, from_json

from app.storable import check_document


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


def test_a_body_of_integers_is_checked_in_less_time_than_it_is_walked() -> None:
    """Time of this process, whatever else runs: a walk in Python takes several times what the check may."""
    document = from_json(json.dumps({"a": [1] * 1_000_000}))

    def checked() -> float:
        began = time.process_time()
        check_document(document)
        return time.process_time() - began

    def walked() -> float:
        began = time.process_time()
        assert all(isinstance(each, int) for each in document["a"])
        return time.process_time() - began

    assert min(checked() for _ in range(5)) < min(walked() for _ in range(5))
