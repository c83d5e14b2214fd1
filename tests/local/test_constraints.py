"""The simulation keeps to regular expressions and grammars, in time however they are made."""

import random
import re
import sys
from types import ModuleType

import pytest

from nvidia_triton.local.triton import BACKEND


@pytest.fixture(scope="module")
def constraints() -> ModuleType:
    sys.path.insert(0, str(BACKEND))
    try:
        import sim_constraints  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return sim_constraints  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "pattern", ["[0-9]{4}-[0-9]{2}", "(yes|no)+x?", r"\d{3}\s\w+[^a-z]", r"^\S+@\S+\.com$", "(?:a|b)*?c", "[^,]*.é"]
)
def test_a_text_matches_its_pattern(constraints: ModuleType, pattern: str) -> None:
    for seed in range(50):
        text = constraints.of_regex(random.Random(seed), pattern)
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('root ::= "yes" | "no"', "yes|no"),
        ('root ::= item ("," item)* # a list\nitem ::= [a-c]+ "\\n"?', r"[abc]+\n?(,[abc]+\n?)*"),
        ("root ::= 'é\\\"' x\nx ::= [0-9]", 'é"[0-9]'),
    ],
)
def test_a_text_follows_its_grammar(constraints: ModuleType, grammar: str, pattern: str) -> None:
    for seed in range(50):
        text = constraints.Grammar(grammar).text(random.Random(seed))
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("no rules", "no rule named root"),
        ('x ::= "a"', "no rule named root"),
        ("root ::= (", r"Expected '\)'"),
        ("root ::= y", "the rule y is not defined"),
        ("root ::= *", r"unexpected '\*'"),
        ('root ::= "a" = "b"', "unexpected '= "),
    ],
)
def test_what_is_no_grammar_is_refused(constraints: ModuleType, grammar: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        constraints.Grammar(grammar)


def test_nothing_is_endless(constraints: ModuleType) -> None:
    rng = random.Random(1)
    assert len(constraints.of_regex(rng, "(((a{9999}){9999}){9999})")) <= constraints.MOST_PARTS
    assert len(constraints.Grammar("root ::= root root root | root root").text(rng)) <= constraints.MOST_PARTS
