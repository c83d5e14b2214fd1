"""Loading and unloading models, on servers that take such orders."""

from __future__ import annotations

import asyncio
import re
from typing import Self

from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from app.engines.base import GONE_CODES, EngineError, NotLoaded, presentable
from app.engines.triton.connection import CHANNEL_OPTIONS
from app.engines.triton.faults import classify_unary

# A model in one of these may hold its memory.
HELD = frozenset({"READY", "LOADING", "UNLOADING"})
POLL_SECONDS = 0.2
_NOT_EXPLICIT = re.compile(r"explicit model load / unload is not allowed")


class TritonControl:
    """A connection of its own to the server `url`; timeouts in seconds."""

    def __init__(self, url: str) -> None:
        self._client = triton.InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def names(self, timeout: float) -> list[str]:
        """All models of the repository.

        Raises:
            EngineError: the server does not answer.
        """
        try:
            index = await self._client.get_model_repository_index(client_timeout=timeout)
        except InferenceServerException as error:
            raise _classified(error) from None
        return sorted({each.name for each in index.models})

    async def taken(self, model: str, timeout: float) -> int:
        """How many requests the model's process has taken since it was loaded, from whomever.

        Raises:
            EngineError: the server does not answer, or does not have the model.
        """
        try:
            told = await self._client.get_inference_statistics(model, client_timeout=timeout)
        except InferenceServerException as error:
            raise _classified(error) from None
        # Of a decoupled model, a request is a success as soon as its process has taken it.
        return sum(each.inference_stats.success.count for each in told.model_stats)

    async def unload(self, model: str, timeout: float, patience: float) -> bool:
        """Unloads a model and waits until it is gone; False where that takes longer than `patience` seconds.

        Raises:
            EngineError: the server does not answer, or takes no such order.
        """
        deadline = asyncio.get_running_loop().time() + patience
        try:
            await self._client.unload_model(model, client_timeout=timeout)
            while True:
                index = await self._client.get_model_repository_index(client_timeout=timeout)
                if all(each.state not in HELD for each in index.models if each.name == model):
                    return True
                if asyncio.get_running_loop().time() > deadline:
                    return False
                await asyncio.sleep(POLL_SECONDS)
        except InferenceServerException as error:
            raise _classified(error) from None

    async def load(self, model: str, timeout: float) -> None:
        """Loads a model and returns when it is ready.

        Raises:
            EngineError: it could not be loaded, or the server takes no such order.
        """
        try:
            await self._client.load_model(model, client_timeout=timeout)
        except InferenceServerException as error:
            raise _classified(error) from None


def _classified(error: InferenceServerException) -> EngineError:
    text = error.message() or ""
    if _NOT_EXPLICIT.search(text):
        return NotLoaded("The server loads and unloads no models by request.", raw=text, refused=True)
    known = classify_unary(error)
    return known if known.code in GONE_CODES else NotLoaded(presentable(text), raw=text)
