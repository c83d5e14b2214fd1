"""Cancelling, and what dies: requests, the engine, the stub, the server."""

import asyncio
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from nvidia_triton.contract.wire import Client, read
from tests.servers import RunningTriton, start_triton

# Channels of one process share connections, and with them the pause after a refused one.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
PROMPT = "Tell me about the harbour."
ENGINE_DEAD = "Error generating stream: EngineCore encountered an issue. See stack trace (above) for the root cause."


def busy(server: RunningTriton, model: str) -> tuple[int, int]:
    """Requests running and waiting inside the engine."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    found = []
    for name in ("running", "waiting"):
        match = re.search(rf'^sim_requests_{name}{{[^}}]*model="{model}"[^}}]*}} (\S+)', text, re.M)
        found.append(int(float(match[1])) if match else 0)
    return found[0], found[1]


async def until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds it took for the condition to hold."""
    started = time.monotonic()
    while not await asyncio.to_thread(condition):
        assert time.monotonic() - started < seconds, "the condition did not hold in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def last(pairs: Any) -> Any:
    """The last pair of a stream."""
    return [pair async for pair in pairs][-1]


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_frees_the_engine(client: Client, server: RunningTriton, stream: bool) -> None:
    """Running ones, waiting ones and ones that hang; `slow` has 64 slots."""
    prompts = ["[[sim:slow=1000]][[sim:chunk=1]]"] * 60 + ["[[sim:hang]]"] * 20
    streams = [client.stream("slow", prompt, stream=stream, sampling={"max_tokens": 500}) for prompt in prompts]
    readers = [asyncio.create_task(anext(each)) for each in streams]
    await until(lambda: busy(server, "slow") == (64, 16), 5)
    if stream:
        # Those that say something have said it.
        await asyncio.wait_for(asyncio.gather(*readers[:60]), 20)
    for each in streams:
        each.cancel()
    await until(lambda: busy(server, "slow") == (0, 0), 10)
    results = await asyncio.gather(*readers, return_exceptions=True)
    cancelled = sum(isinstance(each, asyncio.CancelledError) for each in results)
    assert cancelled == (20 if stream else 80)


async def test_a_cancelled_stream_ends_with_cancelled_error(client: Client) -> None:
    pairs = client.stream("slow", PROMPT, stream=True, sampling={"max_tokens": 2000, "ignore_eos": True})
    result, error = await anext(pairs)
    assert error is None
    assert not read(result).final
    pairs.cancel()
    with pytest.raises(asyncio.CancelledError):
        await anext(pairs)


async def test_a_deadline(client: Client, server: RunningTriton) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.ask("slow", "[[sim:hang]]", deadline=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: busy(server, "slow") == (0, 0), 3)


async def test_more_than_there_are_slots_go_in_rounds(client: Client) -> None:
    started = time.monotonic()
    prompt = "[[sim:first=0]][[sim:slow=50]][[sim:tokens=11]]"
    await asyncio.gather(*(client.ask("slow", prompt, stream=True) for _ in range(128)))
    # Two rounds of half a second through 64 slots.
    assert time.monotonic() - started > 0.9


async def test_unloading_lets_requests_finish(client: Client) -> None:
    pairs = client.stream("lora", PROMPT, stream=True, sampling={"max_tokens": 200, "ignore_eos": True})
    await anext(pairs)
    await client.grpc.unload_model("lora")
    assert (await client.error("lora", PROMPT)).endswith("'lora' has no available versions")
    result, _ = await last(pairs)
    assert read(result).final
    await client.grpc.load_model("lora")
    assert await client.ask("lora", PROMPT)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    running = start_triton(tmp_path_factory.mktemp("victim"), ("tiny", "fragile"))
    yield running
    running.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def doomed(victim: RunningTriton) -> AsyncIterator[Client]:
    async with triton.InferenceServerClient(victim.grpc_url) as grpc_client:
        yield Client(grpc_client)


async def test_the_engine_dies(doomed: Client) -> None:
    waiting = asyncio.create_task(doomed.error("tiny", "[[sim:hang]]"))
    await asyncio.sleep(0)
    await doomed.ask("tiny", PROMPT)
    assert await doomed.error("tiny", "[[sim:engine-dead]]") == ENGINE_DEAD
    assert await waiting == ENGINE_DEAD
    assert await doomed.error("tiny", PROMPT, stream=True) == ENGINE_DEAD
    assert await doomed.grpc.is_model_ready("tiny")
    await doomed.grpc.unload_model("tiny")
    await doomed.grpc.load_model("tiny")
    assert await doomed.ask("tiny", PROMPT)


async def test_a_dead_engine_with_health_check_unloads_the_model(doomed: Client, victim: RunningTriton) -> None:
    assert await doomed.error("fragile", "[[sim:engine-dead]]") == ENGINE_DEAD
    assert await doomed.error("fragile", PROMPT) == "Model is unavailable due to unhealthy vLLM engine"
    await until(lambda: not victim.is_model_ready("fragile"), 5)
    assert (await doomed.error("fragile", PROMPT)).endswith("'fragile' has no available versions")


async def test_a_frozen_server_says_nothing(doomed: Client, victim: RunningTriton) -> None:
    pairs = doomed.stream("tiny", PROMPT, stream=True, sampling={"max_tokens": 200, "ignore_eos": True})
    await anext(pairs)
    victim.freeze()
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(last(pairs), 1)
    finally:
        victim.thaw()
    assert await doomed.ask("tiny", PROMPT)


async def test_the_stub_dies(doomed: Client) -> None:
    await doomed.grpc.load_model("fragile")
    pairs = doomed.stream("fragile", "[[sim:die-stub]]")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(last(pairs), 1)
    assert await doomed.error("fragile", PROMPT) == "Stub process 'fragile_0_0' is not healthy."
    assert await doomed.grpc.is_model_ready("fragile")


def regions(server: RunningTriton) -> list[Path]:
    """Shared memory that the server maps."""
    lines = Path(f"/proc/{server.pid}/maps").read_text().splitlines()
    return [Path(line[line.index("/") :]) for line in lines if "/dev/shm/triton_" in line]


async def test_the_server_dies_and_comes_back(doomed: Client, victim: RunningTriton) -> None:
    left = regions(victim)
    assert left
    hanging = asyncio.create_task(doomed.ask("tiny", "[[sim:hang]]"))
    await doomed.ask("tiny", PROMPT)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await doomed.ask("tiny", "[[sim:kill-server]]")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError):
        await hanging
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await doomed.ask("tiny", PROMPT)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await asyncio.to_thread(victim.kill)
    assert not any(path.exists() for path in left)
    await asyncio.to_thread(victim.start)
    async with triton.InferenceServerClient(victim.grpc_url, channel_args=OWN_CONNECTION) as fresh:
        assert await Client(fresh).ask("tiny", PROMPT)


async def test_a_terminated_server_drains(victim: RunningTriton) -> None:
    async with triton.InferenceServerClient(victim.grpc_url, channel_args=OWN_CONNECTION) as fresh:
        client = Client(fresh)
        sampling = {"max_tokens": 80, "ignore_eos": True}
        pairs = client.stream("tiny", "[[sim:slow=20]]", stream=True, sampling=sampling)
        await anext(pairs)
        before = len(victim.log())
        victim.terminate()
        await until(lambda: "Waiting for in-flight" in victim.log()[before:], 2)
        assert (await client.error("tiny", PROMPT)).endswith("'tiny' has no available versions")
        with pytest.raises(InferenceServerException, match="Server exiting"):
            await fresh.is_server_ready()
        result, _ = await last(pairs)
        assert read(result).final
