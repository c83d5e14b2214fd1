"""Sampling parameters: the same names, coercions and limits as the vLLM backend has."""

import json
import math
import re
from dataclasses import dataclass, field, fields

import sim_constraints
import sim_text

_STRUCTURED_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_STRUCTURED_OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
_GUIDED_BACKENDS = ("xgrammar", "xgrammar:no-fallback", "auto", "xgrammar:_auto")


@dataclass(slots=True)
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list = field(default_factory=list)
    stop_token_ids: list = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: dict | None = None
    logit_bias: dict | None = None
    # Known to the engine, without effect here.
    allowed_token_ids: object = None
    bad_words: object = None
    extra_args: object = None
    truncate_prompt_tokens: object = None
    output_kind: object = None
    flat_logprobs: object = None
    skip_clone: object = None
    skip_reading_prefix_cache: object = None
    thinking_token_budget: object = None
    repetition_detection: object = None

    def verify(self) -> None:
        """Raise ValueError or TypeError for what the engine refuses."""
        if self.seed == -1:
            self.seed = None
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        for name, valid, message in _LIMITS:
            value = getattr(self, name)
            if value is not None and not valid(value):
                raise ValueError(f"{name} {message}, got {value}.")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}.")
        if not all(isinstance(token, int) for token in self.stop_token_ids):
            raise ValueError(f"stop_token_ids must contain only integers, got {self.stop_token_ids}.")
        if not all(self.stop):
            raise ValueError("stop cannot contain an empty string.")
        if not all(isinstance(text, str) for text in self.stop):
            raise TypeError("stop must contain only strings.")
        if self.stop and not self.detokenize:
            raise ValueError(
                "stop strings are only supported when detokenize is True. Set detokenize=True to use stop."
            )
        if self.temperature < 1e-5 and self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")

    def verify_logprobs(self, limit: int, vocabulary: int) -> None:
        for name, kind in (("logprobs", "sample"), ("prompt_logprobs", "prompt")):
            asked = getattr(self, name)
            asked = vocabulary if asked == -1 else asked
            if asked is not None and asked > limit:
                raise ValueError(
                    f"Requested {kind} logprobs of {asked}, which is greater than max allowed: {limit} "
                    f"(parameter={name}, value={asked})"
                )

    def verify_logit_bias(self) -> None:
        """The engine compares token ids with numbers; JSON has texts in their place, so it fails on all of them."""
        for token in self.logit_bias or ():
            if token < 0:
                raise ValueError(f"token_id(s) [{token}] in logit_bias contain out-of-vocab token ids.")

    def verify_tokens(self, vocabulary: int) -> None:
        unknown = [token for token in self.stop_token_ids if token >= vocabulary]
        if unknown:
            raise ValueError(
                f"token_id(s) {unknown} in stop_token_ids contain out-of-vocab token ids. Vocabulary size: {vocabulary}"
            )
        if any(token >= vocabulary for token in self.allowed_token_ids or ()):
            raise ValueError("allowed_token_ids contains out-of-vocab token id!")

    def verify_structured(self) -> None:
        """Raise what the engine says of a constraint that it cannot compile."""
        spec = self.structured_outputs or {}
        if spec.get("regex"):
            try:
                re.compile(spec["regex"])
            except re.error as error:
                raise ValueError(f"Grammar error: invalid regex: {error}") from None
        if spec.get("grammar") and not _LARK.search(spec["grammar"]):
            try:
                sim_constraints.Grammar(spec["grammar"])
            except ValueError as error:
                raise ValueError(f"Invalid grammar specification: {error}") from None
        if isinstance(spec.get("json"), dict):
            _verify_schema(spec["json"], spec["json"])


def _verify_schema(schema, root: dict) -> None:
    if isinstance(schema, list):
        for each in schema:
            _verify_schema(each, root)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "array" and any(key in schema for key in _UNSUPPORTED):
        raise ValueError("The provided JSON schema contains features not supported by xgrammar.")
    kinds = schema.get("type", "object")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if isinstance(kind, str) and kind not in _TYPES:
            raise ValueError(f"Grammar error: Invalid type: {kind}")
    reference = schema.get("$ref")
    if isinstance(reference, str):
        try:
            sim_text.resolve(root, reference)
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"Grammar error: cannot resolve the reference {reference}") from None
    for key, value in schema.items():
        if key not in ("const", "default", "enum", "examples"):
            _verify_schema(value, root)


# Grammars of Lark are taken as they are.
_LARK = re.compile(r"^\s*start\s*:(?!:)", re.MULTILINE)
_TYPES = {"string", "integer", "number", "boolean", "null", "array", "object"}
_UNSUPPORTED = ("uniqueItems", "contains", "minContains", "maxContains")
_LIMITS = (
    ("n", lambda value: value >= 1, "must be at least 1"),
    ("presence_penalty", lambda value: -2 <= value <= 2, "must be in [-2, 2]"),
    ("frequency_penalty", lambda value: -2 <= value <= 2, "must be in [-2, 2]"),
    ("repetition_penalty", lambda value: 0 < value < math.inf, "must be greater than zero"),
    ("temperature", lambda value: 0 <= value < math.inf, "must be non-negative"),
    ("top_p", lambda value: 0 < value <= 1, "must be in (0, 1]"),
    ("top_k", lambda value: value >= -1, "must be 0 (disable), or at least 1"),
    ("min_p", lambda value: 0 <= value <= 1, "must be in [0, 1]"),
    ("max_tokens", lambda value: value >= 1, "must be at least 1"),
    ("min_tokens", lambda value: value >= 0, "must be greater than or equal to 0"),
    ("logprobs", lambda value: value >= -1, "must be non-negative or -1"),
    ("prompt_logprobs", lambda value: value >= -1, "must be non-negative or -1"),
    ("stop", lambda value: isinstance(value, list), "must be a string or a list of strings"),
    ("stop_token_ids", lambda value: isinstance(value, list), "must be a list"),
)
_FIELDS = {each.name for each in fields(SamplingParams)}
# Values of these are converted before the check, so temperature "0.5" passes, and so does bool("false").
_COERCED = {
    **dict.fromkeys(("n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"), int),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), float),
    **dict.fromkeys(("temperature", "top_p", "min_p"), float),
    **dict.fromkeys(("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output"), bool),
    "spaces_between_special_tokens": bool,
}


def parse(given: dict) -> SamplingParams:
    """Build parameters from the decoded JSON object; a null value means the default."""
    values = {}
    for key, value in given.items():
        if value is None:
            continue
        if key == "structured_outputs":
            values[key] = _structured(json.loads(value))
        elif key == "guided_decoding":
            spec = json.loads(value) if isinstance(value, str) else dict(value)
            backend = spec.pop("backend", None)
            if backend is not None and backend not in _GUIDED_BACKENDS:
                raise ValueError(f"guided_decoding.backend is not supported per request: {backend}")
            values.setdefault("structured_outputs", _structured(spec))
        elif key in _COERCED:
            values[key] = _COERCED[key](value)
        elif key in _FIELDS:
            values[key] = value
        else:
            raise TypeError(f"Unexpected keyword argument '{key}'")
    params = SamplingParams(**values)
    params.verify()
    return params


def _structured(spec: dict) -> dict:
    for key in spec:
        if key not in _STRUCTURED_KINDS and key not in _STRUCTURED_OPTIONS:
            raise TypeError(f"StructuredOutputsParams.__init__() got an unexpected keyword argument '{key}'")
    kinds = [kind for kind in _STRUCTURED_KINDS if spec.get(kind) is not None]
    if len(kinds) != 1:
        raise ValueError(f"You must use exactly one kind of structured outputs constraint, but {kinds} are specified")
    if spec.get("json") and not isinstance(spec["json"], dict):
        raise ValueError("structured_outputs.json must be a JSON schema dictionary")
    choice = spec.get("choice")
    if choice and not (isinstance(choice, list) and all(isinstance(each, str) for each in choice)):
        raise ValueError("structured_outputs.choice must be a list of strings")
    return spec
