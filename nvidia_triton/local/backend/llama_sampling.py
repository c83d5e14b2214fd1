"""From logits to a token: vLLM's sampling parameters in vLLM's order, computed with NumPy."""

import numpy as np

_MASKED = np.float32(-np.inf)
_GREEDY = 1e-5
_FIRST_CANDIDATES = 1024


class Sampler:
    """Chooses the tokens of one sequence."""

    def __init__(self, params, prompt: list[int], model, grammar) -> None:
        self._params = params
        self._grammar = grammar
        self._prompt = np.unique(np.array(prompt, dtype=np.int64))
        self._counts: dict[int, int] = {}
        self._random = np.random.default_rng(None if params.seed is None else params.seed % 2**64)
        self._excluded = None
        if params.allowed_token_ids:
            self._excluded = np.ones(model.size, dtype=bool)
            self._excluded[params.allowed_token_ids] = False
        self._forbidden = bad_words(params.bad_words or [], model)
        bias = params.logit_bias or {}
        self._biased = np.array([int(token) for token in bias], dtype=np.int64)
        self._bias = np.array([max(-100.0, min(100.0, float(value))) for value in bias.values()], dtype=np.float32)
        self._early = np.array(sorted({*model.ends, *params.stop_token_ids}), dtype=np.int64)
        self._output: list[int] = []

    def choose(self, logits: np.ndarray) -> tuple[int, dict | None]:
        """The next token and, if asked for, `{token: (logprob, rank)}` of it and its likeliest alternatives."""
        params = self._params
        scores = logits.copy()
        if self._grammar is not None:
            self._grammar.mask(scores)
        raw = scores.copy() if params.logprobs is not None else None
        self._constrain(scores)
        if params.temperature < _GREEDY:
            token = int(scores.argmax())
        else:
            token = self._draw(scores / np.float32(params.temperature))
        if self._grammar is not None:
            self._grammar.accept(token)
        self._output.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token, None if raw is None else ranked(raw, token, params.logprobs)

    def _constrain(self, scores: np.ndarray) -> None:
        params = self._params
        if self._excluded is not None:
            scores[self._excluded] = _MASKED
        for prefix, last in self._forbidden:
            if not prefix or self._output[-len(prefix) :] == prefix:
                scores[last] = _MASKED
        if len(self._output) < params.min_tokens:
            scores[self._early] = _MASKED
        if self._biased.size:
            scores[self._biased] += self._bias
        if self._counts and (params.frequency_penalty or params.presence_penalty):
            tokens = np.fromiter(self._counts, dtype=np.int64)
            counts = np.fromiter(self._counts.values(), dtype=np.float32)
            scores[tokens] -= counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
        if params.repetition_penalty != 1:
            tokens = np.union1d(self._prompt, np.fromiter(self._counts, dtype=np.int64))
            values = scores[tokens]
            factor = np.float32(params.repetition_penalty)
            scores[tokens] = np.where(values > 0, values / factor, values * factor)

    def _draw(self, scores: np.ndarray) -> int:
        params = self._params
        weights = np.exp(scores - scores.max())
        if params.min_p > 0:
            weights[weights < params.min_p] = 0
        tokens = None
        if 0 < params.top_k < weights.size:
            tokens = np.argpartition(weights, -params.top_k)[-params.top_k :]
            weights = weights[tokens]
        if params.top_p < 1:
            kept = _nucleus(weights, params.top_p)
            tokens = kept if tokens is None else tokens[kept]
            weights = weights[kept]
        sums = np.cumsum(weights, dtype=np.float64)
        place = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        place = min(place, sums.size - 1)
        return place if tokens is None else int(tokens[place])


def bad_words(words: list[str], model) -> list[tuple[list[int], int]]:
    """For each word, at the start of a text and within one: the tokens before its last one, and that."""
    found = []
    for word in words:
        for text in dict.fromkeys((word.lstrip(" "), " " + word.lstrip(" "))):
            if tokens := model.tokenize(text):
                found.append((tokens[:-1], tokens[-1]))
    return found


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the fewest weights whose sum reaches the share `top_p` of all."""
    goal = float(weights.sum(dtype=np.float64)) * top_p
    for size in (_FIRST_CANDIDATES, weights.size):
        if size < weights.size:
            order = np.argpartition(weights, -size)[-size:]
            order = order[np.argsort(-weights[order], kind="stable")]
        else:
            order = np.argsort(-weights, kind="stable")
        sums = np.cumsum(weights[order], dtype=np.float64)
        if sums[-1] >= goal:
            break
    return order[: int(np.searchsorted(sums, goal)) + 1]


def ranked(raw: np.ndarray, token: int, alternatives: int) -> dict:
    """The token first, then the likeliest: id -> (log probability, rank)."""
    top = float(raw.max())
    scale = top + float(np.log(np.exp(raw - top).sum(dtype=np.float64)))
    row = {token: (float(raw[token]) - scale, int((raw > raw[token]).sum()) + 1)}
    if alternatives:
        likeliest = np.argpartition(raw, -alternatives)[-alternatives:]
        likeliest = likeliest[np.argsort(-raw[likeliest], kind="stable")]
        for rank, each in enumerate(likeliest, 1):
            if np.isfinite(raw[each]):
                row.setdefault(int(each), (float(raw[each]) - scale, rank))
    return row
