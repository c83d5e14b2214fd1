"""What one sequence has generated: its tokens, the text they show, and why it ended."""

import codecs


class Generation:
    """Grows token by token; `visible` characters of `text` may be shown once so many tokens exist."""

    __slots__ = ("_decoder", "_held", "_model", "_params", "_rows", "_shown", "finish", "limit", "text", "tokens")

    def __init__(self, params, model, limit: int) -> None:
        """`limit` is the most tokens that it may have."""
        self.limit = limit
        self._params = params
        self._model = model
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Characters kept back until the end because they may begin a stop string.
        self._held = 0 if params.include_stop_str_in_output else max(map(len, params.stop), default=1) - 1
        self._rows: list[dict] = []
        self._shown = [0]
        self.tokens: list[int] = []
        self.text = ""
        self.finish = "None"

    @property
    def ended(self) -> bool:
        return self.finish != "None"

    def add(self, token: int, row: dict | None) -> None:
        """Take the next token; sets `finish` when it is the last one."""
        params = self._params
        self.tokens.append(token)
        if row is not None:
            self._rows.append(row)
        ended = token in self._model.ends and not params.ignore_eos
        ended = ended or (token in params.stop_token_ids and len(self.tokens) > params.min_tokens)
        before = len(self.text)
        if params.detokenize and self._readable(token, ended):
            self.text += self._decoder.decode(self._model.pieces[token])
        if ended:
            self.finish = "stop"
        elif not self._cut_at_stop(before) and len(self.tokens) >= self.limit:
            self.finish = "length"
        self._shown.append(len(self.text) if self.ended else max(self._shown[-1], len(self.text) - self._held))

    def visible(self, count: int) -> int:
        return self._shown[min(count, len(self.tokens))]

    def cumulative_logprob(self, count: int) -> float:
        return sum(next(iter(row.values()))[0] for row in self._rows[:count])

    def logprobs(self, start: int, stop: int, _: int) -> list[dict]:
        """For each token the chosen one, then its likeliest alternatives."""
        return told(self._rows[start:stop], self._model.pieces)

    def _readable(self, token: int, ended: bool) -> bool:
        if ended and not self._params.include_stop_str_in_output:
            return False
        return token not in self._model.special or not self._params.skip_special_tokens

    def _cut_at_stop(self, before: int) -> bool:
        """Whether the newest token completed a stop string; the text then ends there."""
        params = self._params
        if not params.stop or len(self.tokens) <= params.min_tokens:
            return False
        found = []
        for order, stop in enumerate(params.stop):
            position = self.text.find(stop, max(0, before - len(stop) + 1))
            if position >= 0:
                found.append((position + len(stop), order, position))
        if not found:
            return False
        end, _, begin = min(found)
        self.text = self.text[: end if params.include_stop_str_in_output else begin]
        self.finish = "stop"
        return True


def told(rows: list[dict], pieces: list[bytes]) -> list[dict]:
    """Ranked tokens as vLLM tells them."""
    return [
        {
            token: {"logprob": logprob, "rank": rank, "decoded_token": pieces[token].decode(errors="replace")}
            for token, (logprob, rank) in row.items()
        }
        for row in rows
    ]
