"""Texts that keep to a regular expression or a grammar, and what the engine says of one that it cannot compile."""

import re
from re import _constants as ops
from re import _parser

# Of what may be repeated without end; of the parts of a text, and of parts inside each other.
MOST_REPEATS = 3
MOST_PARTS = 10_000
MOST_DEPTH = 40
_CLASSES = {ops.CATEGORY_DIGIT: "0123456789", ops.CATEGORY_SPACE: " ", ops.CATEGORY_WORD: "abcdefghij"}
_PRINTABLE = [chr(code) for code in range(32, 127)]
# Of a grammar in the EBNF that engines share: literals, classes, names, groups, repeats.
_TOKEN = re.compile(
    r'\s*(?:(#[^\n]*)|("(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|\[(?:\\.|[^\]\\])*\]|[\w-]+|::=|[|()*+?]))'
)


def of_regex(rng, pattern: str) -> str:
    """A text that `pattern` matches as a whole, as long as it is not too long."""
    return _of(rng, _parser.parse(pattern), [MOST_PARTS])


def _of(rng, parsed, left: list[int]) -> str:
    """`left` holds how many parts may still be made: no pattern keeps the engine busy for others' requests."""
    return "".join(_part(rng, op, value, left) for op, value in parsed)


def _part(rng, op, value, left: list[int]) -> str:
    left[0] -= 1
    if left[0] < 0:
        return ""
    if op is ops.LITERAL:
        return chr(value)
    if op is ops.NOT_LITERAL:
        return rng.choice([each for each in _PRINTABLE if ord(each) != value])
    if op is ops.ANY:
        return rng.choice("abcdefghij")
    if op is ops.IN:
        return rng.choice(_members(value))
    if op is ops.BRANCH:
        return _of(rng, rng.choice(value[1]), left)
    if op is ops.SUBPATTERN:
        return _of(rng, value[-1], left)
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
        least, most, inner = value
        times = min(rng.randint(least, min(most, least + MOST_REPEATS)), max(left[0], 0))
        return "".join(_of(rng, inner, left) for _ in range(times))
    # Anchors and assertions stand for no text.
    return ""


def _members(items) -> list[str]:
    found = []
    for op, value in items:
        if op is ops.LITERAL:
            found.append(chr(value))
        elif op is ops.RANGE:
            found += [chr(code) for code in range(value[0], min(value[1], value[0] + 200) + 1)]
        elif op is ops.CATEGORY:
            found += _CLASSES.get(value, "-")
    if items[0][0] is ops.NEGATE:
        found = [each for each in _PRINTABLE if each not in found]
    return found or [" "]


class Grammar:
    """Rules `name ::= ...`, of which `root` is where a text begins.

    Raises:
        ValueError: it cannot be read; the text says why.
    """

    def __init__(self, text: str) -> None:
        if not re.search(r"^\s*root\s*::=", text, re.MULTILINE):
            raise ValueError("no rule named root")
        self._tokens = self._split(text)
        self._rules = {}
        while self._tokens:
            name = self._tokens.pop(0)
            if not self._tokens or self._tokens.pop(0) != "::=":
                raise ValueError(f"Expected '::=' after {name}")
            self._rules[name] = self._alternatives()
        for name in self._named(list(self._rules.values())):
            if name not in self._rules:
                raise ValueError(f"the rule {name} is not defined")

    def text(self, rng) -> str:
        """A text of it; cut where its rules have no end."""
        return self._write(rng, self._rules["root"], 0, [MOST_PARTS])

    @staticmethod
    def _split(text: str) -> list[str]:
        tokens, position = [], 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise ValueError(f"unexpected {text[position:].strip()[:20]!r}")
            position = match.end()
            if match[2]:
                tokens.append(match[2])
        return tokens

    def _alternatives(self):
        found = [self._sequence()]
        while self._tokens[:1] == ["|"]:
            self._tokens.pop(0)
            found.append(self._sequence())
        return ("any", found)

    def _sequence(self):
        parts = []
        while self._tokens and self._tokens[0] not in ("|", ")") and self._tokens[1:2] != ["::="]:
            word = self._tokens.pop(0)
            if word == "(":
                part = self._alternatives()
                if not self._tokens or self._tokens.pop(0) != ")":
                    raise ValueError("Expected ')'")
            elif word in ("::=", "*", "+", "?"):
                raise ValueError(f"unexpected {word!r}")
            else:
                part = ("text", word) if word[0] in "\"'[" else ("rule", word)
            while self._tokens and self._tokens[0] in ("*", "+", "?"):
                part = (self._tokens.pop(0), part)
            parts.append(part)
        return ("all", parts)

    def _named(self, node):
        if isinstance(node, list):
            for each in node:
                yield from self._named(each)
        elif node[0] == "rule":
            yield node[1]
        elif node[0] != "text":
            yield from self._named(node[1])

    def _write(self, rng, node, depth: int, left: list[int]) -> str:
        kind, value = node
        left[0] -= 1
        if depth > MOST_DEPTH or left[0] < 0:
            return ""
        if kind == "any":
            return self._write(rng, rng.choice(value), depth + 1, left)
        if kind == "all":
            return "".join(self._write(rng, each, depth + 1, left) for each in value)
        if kind == "rule":
            return self._write(rng, self._rules[value], depth + 1, left)
        if kind == "text":
            return of_regex(rng, value) if value[0] == "[" else _ESCAPE.sub(_escaped, value[1:-1])
        least, most = {"*": (0, MOST_REPEATS), "+": (1, MOST_REPEATS), "?": (0, 1)}[kind]
        return "".join(self._write(rng, value, depth + 1, left) for _ in range(rng.randint(least, most)))


_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def _escaped(match: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t", "r": "\r"}.get(match[1], match[1])
