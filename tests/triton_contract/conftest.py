"""One tritonserver for all contract tests."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton

from nvidia_triton.contract.wire import Client
from tests.servers import RunningTriton, start_triton


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    running = start_triton(tmp_path_factory.mktemp("triton"), ("tiny", "slow", "noop", "lora", "chat"))
    yield running
    running.kill()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(server: RunningTriton) -> AsyncIterator[Client]:
    async with triton.InferenceServerClient(server.grpc_url) as grpc:
        yield Client(grpc)
