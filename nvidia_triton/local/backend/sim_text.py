"""Tokens and text of the simulated model.

A token is a word (up to 16 letters) or a number (up to 3 digits) or one other character, each with the one
space before it; other white space is a token per character. A character outside the BMP (an emoji) is two
tokens, the first without text, as in a byte-level vocabulary. An end token, also without text, closes a text.
"""

import json
import re
import zlib

import sim_constraints

VOCABULARY_SIZE = 151_936
END_TOKEN_ID = 151_645
MARK = "[simulated]"
# In one text that is held to a JSON schema, and in one of its strings.
MOST_VALUES = 10_000
MOST_CHARACTERS = 100_000

_ASTRAL = "\U00010000-\U0010ffff"
_TOKEN = re.compile(rf" ?[A-Za-z]{{1,16}}| ?[0-9]{{1,3}}|[{_ASTRAL}]| ?[^\sA-Za-z0-9{_ASTRAL}]|\s")
_ASTRAL_CHARACTER = re.compile(f"[{_ASTRAL}]")
_TOPIC = re.compile(r"[A-Za-z]{4,16}")

_OPENERS = ("", "", "", "Even so, ", "In short, ", "On reflection, ", "By morning, ", "As a rule, ")
_SUBJECTS = (
    "the harbour",
    "a patient reader",
    "the second answer",
    "an old map",
    "every traveller",
    "the quiet archive",
    "a careful clerk",
    "the long corridor",
    "one small lamp",
    "the northern road",
)
_VERBS = (
    "keeps",
    "explains",
    "follows",
    "outlives",
    "borrows from",
    "returns to",
    "measures",
    "gathers",
    "leads to",
    "describes",
)
_OBJECTS = (
    "the shape of the question",
    "a list of useful names",
    "what the rain left behind",
    "the simplest explanation",
    "a drawer of folded letters",
    "the cost of waiting",
    "an unfinished bridge",
    "the sound of distant trains",
    "three reasons and a doubt",
    "the edge of the garden",
)
_ENDINGS = (
    ".",
    ".",
    ".",
    " before the day ends.",
    " without any hurry.",
    ", and that is enough.",
    ", more or less.",
)


def count_tokens(text: str) -> int:
    extra = 0 if text.isascii() else len(_ASTRAL_CHARACTER.findall(text))
    return len(_TOKEN.findall(text)) + extra


def tokenize(text: str) -> list[str]:
    """The text of each token; joined they give the text again."""
    tokens = _TOKEN.findall(text)
    if text.isascii():
        return tokens
    return [part for piece in tokens for part in (("", piece) if piece > "\uffff" else (piece,))]


def mark(lora: str | None, images: int) -> str:
    """What every text begins with; an adapter and images show in it, where a real model's text would show them."""
    seen = f", {images} image{'s' if images > 1 else ''}" if images else ""
    return f"{MARK[:-1]}{seen}{'' if lora is None else f': {lora}'}]"


def token_id(token: str) -> int:
    return zlib.crc32(token.encode("utf-8", "surrogatepass")) % (END_TOKEN_ID - 1) + 1


def topics(prompt: str) -> list[str]:
    """Words of the prompt to write about; only its end is looked at, where a question usually stands."""
    return _TOPIC.findall(prompt[-2000:])[-12:]


def sentence(rng, words: list[str]) -> str:
    pick = rng.random
    subject = _SUBJECTS[int(pick() * 10)]
    if words and pick() < 0.4:
        subject = f"“{words[int(pick() * len(words))]}”"
    opener = _OPENERS[int(pick() * 8)]
    verb, thing = _VERBS[int(pick() * 10)], _OBJECTS[int(pick() * 10)]
    text = f"{opener}{subject} {verb} {thing}{_ENDINGS[int(pick() * 7)]}"
    return text[0].upper() + text[1:]


def prose(rng, words: list[str], tokens: int, begin: str, *, endless: bool) -> list[str]:
    """Tokens of a text that starts with `begin`: it ends by itself, or if `endless` after at least `tokens`."""
    remaining = -1 if endless else rng.randint(3, 9)
    pieces = tokenize(begin)
    while remaining and len(pieces) < tokens:
        pieces += tokenize(" " + sentence(rng, words))
        remaining -= 1
    return pieces


def structured(rng, words: list[str], spec: dict, begin: str) -> str:
    """A short text that keeps to the constraint."""
    if spec.get("choice"):
        return rng.choice(spec["choice"])
    if spec.get("json") is not None:
        return json.dumps(_instance(rng, words, spec["json"], spec["json"], 0, [MOST_VALUES]))
    if spec.get("json_object"):
        return json.dumps({"simulated": True, "text": sentence(rng, words)}, ensure_ascii=False)
    if spec.get("regex"):
        return sim_constraints.of_regex(rng, spec["regex"])
    if "::=" in spec.get("grammar", ""):
        return sim_constraints.Grammar(spec["grammar"]).text(rng)
    # Grammars of Lark and structural tags are not followed.
    return f"{begin} {sentence(rng, words)}"


def _instance(rng, words, schema, root, depth, left):
    """`left` holds how many values may still be made: no schema keeps the engine busy for others' requests."""
    left[0] -= 1
    if schema is True or not isinstance(schema, dict) or depth > 16 or left[0] < 0:
        return None
    for keyword in ("const", "default"):
        if keyword in schema:
            return schema[keyword]
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    if "$ref" in schema:
        return _instance(rng, words, resolve(root, schema["$ref"]), root, depth + 1, left)
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword):
            return _instance(rng, words, schema[keyword][0], root, depth + 1, left)
    if schema.get("allOf"):
        merged = {**schema, **{key: value for part in schema["allOf"] for key, value in part.items()}}
        merged.pop("allOf", None)
        return _instance(rng, words, merged, root, depth + 1, left)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        names = schema.get("required", list(schema.get("properties", {})))
        properties = schema.get("properties", {})
        return {name: _instance(rng, words, properties.get(name, {}), root, depth + 1, left) for name in names}
    if kind == "array":
        size = schema.get("minItems", 1 if schema.get("maxItems", 1) else 0)
        items = schema.get("items", {})
        return [_instance(rng, words, items, root, depth + 1, left) for _ in range(min(size, max(left[0], 0)))]
    if kind in ("integer", "number"):
        return _number(rng, schema, kind)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "null":
        return None
    text = rng.choice(words) if words else "simulated"
    return text.ljust(min(schema.get("minLength", 0), MOST_CHARACTERS), ".")[: schema.get("maxLength", 200)]


def _number(rng, schema, kind):
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    step = schema.get("multipleOf", 1)
    if low is None and high is None:
        return rng.randint(0, 9) * step
    value = low if low is not None else high
    if "minimum" not in schema and low is not None:
        value = low + step if kind == "integer" or high is None else (low + high) / 2
    elif low is None and "maximum" not in schema:
        value = high - step
    if kind == "integer":
        return -(-value // step) * step if low is not None else value // step * step
    return value


def resolve(root, reference: str):
    node = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")] if part else node
    return node
