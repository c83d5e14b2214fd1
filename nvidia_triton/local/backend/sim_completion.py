"""One generated sequence, decided in full before its first token is due."""

import random
import zlib
from bisect import bisect_left
from itertools import accumulate

import sim_text

_UNSEEDED = random.Random()  # noqa: S311


class Completion:
    """Tokens, the text they make visible, and why they end."""

    __slots__ = ("_ends", "_held", "finish", "text", "tokens")

    def __init__(self, tokens: list[str], text: str, finish: str, held: int) -> None:
        self.tokens = tokens
        self.text = text
        self.finish = finish
        # Characters kept back until the end because they may begin a stop string.
        self._held = held
        self._ends = None

    def visible(self, count: int) -> int:
        """Characters that may be shown once `count` tokens exist."""
        if count >= len(self.tokens):
            return len(self.text)
        if self._ends is None:
            self._ends = list(accumulate(map(len, self.tokens)))
        return max(0, min(self._ends[count - 1] - self._held, len(self.text))) if count else 0

    def token_id(self, position: int) -> int:
        if position == len(self.tokens) - 1 and self.tokens[position] == "" and self.finish == "stop":
            return sim_text.END_TOKEN_ID
        return sim_text.token_id(self.tokens[position])

    def logprob(self, position: int) -> float:
        return -((_crc(self.tokens[position]) + position) % 997) / 997 - 1e-3

    def cumulative_logprob(self, count: int) -> float:
        return sum(self.logprob(position) for position in range(min(count, len(self.tokens))))

    def logprobs(self, start: int, stop: int, alternatives: int) -> list[dict]:
        """For each token the chosen one and its likeliest alternatives, `max(1, alternatives)` in all."""
        rows = []
        for position in range(start, min(stop, len(self.tokens))):
            chosen = self.logprob(position)
            row = {self.token_id(position): _entry(chosen, 1, self.tokens[position])}
            rank = 2
            while len(row) < alternatives:
                word = f" other{(position + rank) % 499}"
                row[sim_text.token_id(word)] = _entry(chosen - rank, rank, word)
                rank += 1
            rows.append(row)
        return rows


def _entry(logprob: float, rank: int, token: str) -> dict:
    return {"logprob": logprob, "rank": rank, "decoded_token": token}


def complete(prompt: str, params, plan, room: int, index: int, mark: str) -> Completion:
    """Generate sequence `index` of a request. `room` is the number of tokens that fit into the context."""
    limit = min(params.max_tokens, room)
    rng = _generator(prompt, params, index)
    tokens = _natural(prompt, params, plan, limit, rng, mark)
    finish = "stop"
    if len(tokens) > limit:
        del tokens[limit:]
        finish = "length"
    text = "".join(tokens)
    cut = _first_stop(tokens, text, params)
    if cut is not None:
        count, length = cut
        return Completion(tokens[:count], text[:length], "stop", _held(params))
    return Completion(tokens, text, finish, _held(params))


def _generator(prompt: str, params, index: int) -> random.Random:
    if params.temperature < 1e-5:
        seed = _crc(prompt)
    elif params.seed is not None:
        # vLLM gives each sequence a seed of its own in the same way.
        seed = _crc(f"{params.seed + index} {params.temperature} {params.top_p} {params.top_k} {prompt}")
    else:
        return _UNSEEDED
    return random.Random(seed)  # noqa: S311


def _crc(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "replace"))


def _natural(prompt: str, params, plan, limit: int, rng, mark: str) -> list[str]:
    """The tokens with their end token; more than `limit` of them if the text would go on beyond it."""
    if plan.emit is not None:
        return [*sim_text.tokenize(plan.emit), ""]
    words = sim_text.topics(prompt)
    if params.structured_outputs is not None:
        return [*sim_text.tokenize(sim_text.structured(rng, words, params.structured_outputs, mark)), ""]
    if plan.tokens is not None and not params.ignore_eos:
        wanted = min(plan.tokens - 1, limit + 1)
        return [*sim_text.prose(rng, words, wanted, mark, endless=True)[:wanted], ""]
    tokens = sim_text.prose(rng, words, limit + 1, mark, endless=params.ignore_eos)
    if len(tokens) < params.min_tokens:
        tokens += sim_text.prose(rng, words, params.min_tokens - len(tokens), "", endless=True)
    return [*tokens, ""]


def _held(params) -> int:
    if not params.stop or params.include_stop_str_in_output:
        return 0
    return max(map(len, params.stop)) - 1


def _first_stop(tokens: list[str], text: str, params) -> tuple[int, int] | None:
    """Number of tokens and characters that stay when a stop string or a stop token comes first."""
    found = []
    if params.stop:
        ends = list(accumulate(map(len, tokens)))
        begin = ends[min(params.min_tokens, len(ends)) - 1] if params.min_tokens else 0
        for order, stop in enumerate(params.stop):
            position = text.find(stop, max(0, begin - len(stop) + 1))
            if position >= 0:
                end = position + len(stop)
                kept = end if params.include_stop_str_in_output else position
                found.append((bisect_left(ends, end) + 1, order, kept))
    if params.stop_token_ids:
        wanted = set(params.stop_token_ids)
        for count, token in enumerate(tokens, 1):
            if count > params.min_tokens and sim_text.token_id(token) in wanted:
                kept = sum(map(len, tokens[: count - (not params.include_stop_str_in_output)]))
                found.append((count, -1, kept))
                break
    if not found:
        return None
    count, _, kept = min(found)
    return count, kept
