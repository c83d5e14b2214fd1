"""What the service leaves behind on a server: nothing that keeps a model from unloading or the server from stopping."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.grpc import aio

from app.config import Settings
from app.engines.base import Endpoint, EngineError, Request
from app.engines.triton.client import TritonEngine
from tests.servers import start_triton
from tests.service import eventually, running_api, running_dispatcher

TICKETS = 500


@pytest.mark.parametrize("seed", range(2))
async def test_a_model_unloads_after_tickets_that_ended_and_ones_that_were_cancelled(
    make_settings: Callable[..., Settings], tmp_path: Path, seed: int
) -> None:
    """Cancels come well before the end: one that meets the last message is Triton's own defect, see connection.py."""
    draw = random.Random(seed)
    server = start_triton(tmp_path, ("tiny",))
    settings = make_settings(triton_urls=(server.grpc_url,))
    try:
        async with running_api(settings) as service, running_dispatcher(settings):
            context = await service.context("[[sim:slow=50]]")
            gate = asyncio.Semaphore(40)

            async def ticket(cancelled: bool) -> str:
                async with gate:
                    asked = {
                        "max_tokens": 40 if cancelled else draw.randint(2, 30),
                        "ignore_eos": True,
                        "n": draw.choice((1, 1, 1, 3)),
                    }
                    id_ = await service.send(context, parameters=asked)
                    if cancelled:
                        await asyncio.sleep(draw.random() * 0.7)
                        await service.client.post(f"/results/{id_}/cancel")
                    return str((await service.settled(id_))["status"])

            ends = await asyncio.gather(*(ticket(number % 2 == 0) for number in range(TICKETS)))
            assert ends[1::2] == ["completed"] * (TICKETS // 2)
            assert ends.count("failed") > TICKETS // 10
            assert await unload_seconds(server.grpc_url, "tiny") < 10
        before = time.monotonic()
        await asyncio.to_thread(server.stop)
        assert time.monotonic() - before < server.server.exit_timeout + 3
    finally:
        server.kill()


async def unload_seconds(url: str, model: str) -> float:
    """Seconds until an unloaded model is gone."""
    async with aio.InferenceServerClient(url) as client:
        await client.unload_model(model)
        asked = time.monotonic()

        async def gone() -> bool:
            index = await client.get_model_repository_index()
            return [(m.state, m.reason) for m in index.models if m.name == model] == [("UNAVAILABLE", "unloaded")]

        await eventually(gone, f"{model} is unloaded", 30, 0.05)
        return time.monotonic() - asked


async def test_a_model_unloads_after_requests_that_it_refused(tmp_path: Path) -> None:
    server = start_triton(tmp_path, ("tiny",))
    try:
        async with TritonEngine(Endpoint("triton", server.grpc_url)) as client:

            async def refused() -> None:
                with pytest.raises(EngineError, match="too long"):
                    async for _ in client.run(Request("tiny", "word " * 300, {"max_tokens": 1}, "r", 10, 10)):
                        pass

            for _ in range(10):
                await asyncio.gather(*(refused() for _ in range(20)))
            assert await unload_seconds(server.grpc_url, "tiny") < 10
    finally:
        server.kill()
