"""Tensors against what their model takes, before anything is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from app.engines.base import EngineError
from app.errors import InvalidInputs, ModelNotReady, invalid
from app.services.callers import Caller
from app.services.catalog import DESCRIBE_TIMEOUT_SECONDS, Catalog, shown
from app.tasks.infer import INFER
from app.tasks.purposes import Purpose, purpose_of, tensors_of
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
        if servers and not any(server.engine.takes(INFER) for server in servers):
            raise InvalidInputs(_text_model(model))
        described = await self.described(model)
        if described is None:
            return
        expected = expected_of(described)
        if takes_text(expected):
            raise InvalidInputs(_text_model(model))
        try:
            require_fit(tensors, expected, described.get("max_batch_size", 0))
        except TensorRefused as refused:
            raise refusal(refused, f" of the model {model}") from None

    async def described(self, model: str) -> Mapping[str, Any] | None:
        """As the first server tells it that answers and takes tensors; None while there is none."""
        now = time.monotonic()
        if (known := self._known.get(model)) is not None and now - known[0] < KNOWN_SECONDS:
            return known[1]
        for server in self._catalog.servers_with(model):
            if not server.engine.takes(INFER):
                continue
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

    async def look(self, model: str) -> Mapping[str, Any] | None:
        """As `described`; where no server is known to have the model, they are asked first."""
        if not self._catalog.servers_with(model):
            await self._catalog.models()
        return await self.described(model)

    async def models_for(self, caller: Caller, purpose: Purpose) -> list[str]:
        """Those that are ready and that the caller may use."""
        names = [
            entry.name
            for entry in await self._catalog.models()
            if entry.public_state == "ready" and caller.may_use(entry.name)
        ]
        described = await asyncio.gather(*map(self.described, names))
        return [
            name
            for name, each in zip(names, described, strict=True)
            if each is not None and purpose_of(each) == purpose
        ]

    async def model_for(self, caller: Caller, purpose: Purpose, named: str | None) -> tuple[str, Mapping[str, Any]]:
        """The model of that purpose that a request names, or the only one there is, and how it describes itself.

        Raises:
            ModelNotFound: no server has ever served it.
            ModelNotAllowed: the caller may not use it.
            ModelNotReady: no server can tell what it takes.
            InvalidRequest: it is for something else, or none is named and there is not exactly one.
        """
        if named is None:
            models = await self.models_for(caller, purpose)
            if len(models) != 1:
                raise invalid("model", f"name a model that {purpose.does}; {_there(models)}")
            named = models[0]
        await self._catalog.require(named)
        caller.require_model(named)
        described = await self.look(named)
        servers = self._catalog.servers_with(named)
        if described is None and (not servers or any(server.engine.takes(INFER) for server in servers)):
            raise ModelNotReady(
                f"No server has the model {named} ready, so it is not known what it takes. Nothing was stored: send "
                "the request again after Retry-After.",
                headers={"Retry-After": "5"},
            )
        if described is None or purpose_of(described) != purpose:
            there = _there(await self.models_for(caller, purpose))
            raise invalid("model", f"{named} is no model that {purpose.does}; {there}")
        return named, described


def _there(models: Sequence[str]) -> str:
    return f"those that do are {shown(models)}" if models else "none that is ready does"


def inputs_of(purpose: Purpose, described: Mapping[str, Any], values: Mapping[str, Any]) -> Tensors:
    """What a request says, each by its field, as the tensors of a context.

    Raises:
        InvalidRequest: naming the field.
    """
    try:
        tensors = tensors_of(purpose, described, values)
    except TensorRefused as refused:
        raise invalid(refused.tensor, refused.problem) from None
    fields = dict(zip((tensor.name for tensor in tensors), values, strict=True))
    try:
        return checked(tensors)
    except TensorRefused as refused:
        raise invalid(fields[refused.tensor], refused.problem) from None


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
