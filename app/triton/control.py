"""Loading and unloading models, on servers that take such orders."""

from __future__ import annotations

import asyncio

from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from app.triton.faults import classify_control

# A model in one of these may hold its memory.
HELD = frozenset({"READY", "LOADING", "UNLOADING"})
POLL_SECONDS = 0.2


class ModelControl:
    """Of one server; timeouts in seconds."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client

    async def unload(self, model: str, timeout: float, patience: float) -> bool:
        """Unloads a model and waits until it is gone; False where that takes longer than `patience` seconds.

        Raises:
            TritonError: the server does not answer, or takes no such order.
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
            raise classify_control(error) from None

    async def load(self, model: str, timeout: float) -> None:
        """Loads a model and returns when it is ready.

        Raises:
            TritonError: it could not be loaded, or the server takes no such order.
        """
        try:
            await self._client.load_model(model, client_timeout=timeout)
        except InferenceServerException as error:
            raise classify_control(error) from None
