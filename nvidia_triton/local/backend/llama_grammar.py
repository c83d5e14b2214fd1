"""Structured outputs with llguidance, the library behind one of vLLM's own backends for them."""

import json
import threading

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

# A small model left free to put white space anywhere does so without end.
_JSON_OPTIONS = {"whitespace_flexible": False}
# Keywords whose values are data, and those that say which other properties an object may have.
_LITERAL = ("const", "default", "enum", "examples")
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties"}


class Grammars:
    """Compiles constraints for one vocabulary, which is prepared for the first of them, in a fifth of a second."""

    def __init__(self, model) -> None:
        self._model = model
        self._tokenizer = None
        self._lock = threading.Lock()

    def compile(self, spec: dict) -> "Grammar":
        """
        Raises:
            ValueError: the constraint cannot be compiled; the text is worded as vLLM's.
        """
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._make_tokenizer()
        matcher = LLMatcher(self._tokenizer, _text(spec), log_level=0)
        if matcher.is_error():
            raise ValueError(f"Grammar error: {_first_line(matcher.get_error())}")
        return Grammar(matcher, self._model)

    def _make_tokenizer(self):
        model = self._model
        # llguidance knows a special token by its first byte, which no text has.
        pieces = [b"\xff" + piece if token in model.special else piece for token, piece in enumerate(model.pieces)]
        return LLTokenizer.from_llamacpp(
            tokens=pieces,
            vocab_ptr=model.vocabulary,
            tokenize_fptr=model.tokenize_address,
            eos_token=model.end,
            slices=None,
        )


class Grammar:
    """One sequence's way through its grammar."""

    def __init__(self, matcher, model) -> None:
        self._matcher = matcher
        self._ends = model.ends

    def mask(self, scores: np.ndarray) -> None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: scores.size]
        scores[allowed == 0] = -np.inf

    def accept(self, token: int) -> None:
        if token not in self._ends and not self._matcher.consume_token(token):
            raise ValueError(f"Grammar error: {_first_line(self._matcher.get_error())}")


def _text(spec: dict) -> str:
    if spec.get("json") is not None:
        return LLMatcher.grammar_from_json_schema(json.dumps(_closed(spec["json"])), defaults=_JSON_OPTIONS)
    if spec.get("json_object"):
        return LLMatcher.grammar_from_json_schema('{"type": "object"}', defaults=_JSON_OPTIONS)
    if spec.get("regex") is not None:
        return LLMatcher.grammar_from_regex(spec["regex"])
    if spec.get("choice"):
        alternatives = " | ".join(json.dumps(each, ensure_ascii=False) for each in spec["choice"])
        return LLMatcher.grammar_from_lark(f"start: {alternatives}")
    try:
        return LLMatcher.grammar_from_lark(any_to_lark(spec["grammar"]))
    except Exception as error:
        raise ValueError(f"Invalid grammar specification: {_first_line(str(error))}") from None


def _closed(schema):
    """The schema with properties beyond the declared ones ruled out where it says nothing of them, as in vLLM."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: value if key in _LITERAL else _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not _OPEN & schema.keys():
        closed["additionalProperties"] = False
    return closed


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
