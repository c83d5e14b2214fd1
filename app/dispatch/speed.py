"""How fast an engine generates, for the metrics and the trace."""

import time

from app.telemetry import tracing
from app.telemetry.metrics import FIRST_TOKEN_SECONDS, TOKEN_SECONDS, of_model


class Speed:
    """Of one generation, which begins now."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._started = time.monotonic()
        self._first_at: float | None = None
        self._tokens = 0

    def add(self, tokens: int, *, final: bool) -> None:
        """Takes the tokens of a message; an answer that comes in one piece has no first token to be measured."""
        now = time.monotonic()
        if tokens and self._first_at is None and not final:
            self._first_at = now
            tracing.event("gen_ai.first_token")
            of_model(FIRST_TOKEN_SECONDS, self._model).observe(now - self._started)
            # Those of the first message came together: the pace is that of the messages after it.
            return
        self._tokens += tokens
        if final and self._first_at is not None and self._tokens > 0:
            of_model(TOKEN_SECONDS, self._model).observe((now - self._first_at) / self._tokens)
