"""Tensors against what their model takes, before anything is stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from app.engines.base import EngineError
from app.errors import InvalidInputs
from app.fleet.lanes import Server
from app.services.catalog import DESCRIBE_TIMEOUT_SECONDS, Catalog
from app.tasks.infer import INFER
from app.tasks.tensors import InputTensor, TensorRefused, checked, expected_of, require_fit, takes_text

# A model that is loaded anew, with other inputs, is asked again after so long.
KNOWN_SECONDS = 5.0
MOST_KNOWN = 256

Tensors = list[dict[str, Any]]


class Inputs:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[str, tuple[float, Mapping[str, Any]]] = {}

    async def require(self, model: str, tensors: Sequence[Mapping[str, Any]]) -> None:
        """While no server has the model ready, nothing can be said, and the ticket waits: the server will refuse it.

        Raises:
            InvalidInputs: the model does not take the tensors, or needs others.
        """
        servers = self._catalog.servers_with(model)
        if not servers:
            return
        able = [server for server in servers if server.engine.takes(INFER)]
        if not able:
            raise InvalidInputs(_text_model(model))
        described = await self._described(model, able)
        if described is None:
            return
        expected = expected_of(described)
        if takes_text(expected):
            raise InvalidInputs(_text_model(model))
        try:
            require_fit(tensors, expected, described.get("max_batch_size", 0))
        except TensorRefused as refused:
            raise refusal(refused, f" of the model {model}") from None

    async def _described(self, model: str, servers: Sequence[Server]) -> Mapping[str, Any] | None:
        """Of the first server that answers."""
        now = time.monotonic()
        if (known := self._known.get(model)) is not None and now - known[0] < KNOWN_SECONDS:
            return known[1]
        for server in servers:
            try:
                with server.held() as engine:
                    described = await engine.describe(model, DESCRIBE_TIMEOUT_SECONDS)
            except EngineError:
                continue
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[model] = (now, described)
            return described
        return None


def stored(tensors: Sequence[InputTensor]) -> Tensors:
    """The tensors as a context holds them.

    Raises:
        InvalidInputs: one of them contradicts itself, or all are too large.
    """
    try:
        return checked(tensors)
    except TensorRefused as refused:
        raise refusal(refused) from None


def refusal(refused: TensorRefused, whose: str = "") -> InvalidInputs:
    """The error, which names the tensor."""
    return InvalidInputs(
        f"The input {refused.tensor!r}{whose if refused.problem.startswith('is missing') else ''} {refused.problem}.",
        errors=[{"field": f"inputs.{refused.tensor}", "message": refused.problem}],
    )


def _text_model(model: str) -> str:
    return f"The model {model} takes texts, and this context holds tensors: store a context with content and send that."
