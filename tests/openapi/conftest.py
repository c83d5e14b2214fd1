"""A service for each file, which tries some of the routes, so that the files run side by side."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import httpx
import pytest
import pytest_asyncio

from app.config import Settings
from nvidia_triton.local.settings import ROOT, free_ports
from tests.conftest import cloned_database
from tests.openapi.stack import TOKENS, Stack
from tests.postgres_server import RunningPostgres
from tests.servers import TEST_MODELS, RunningTriton, start_triton
from tests.service import Process, eventually
from tests.tokenizer import trained


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models") / "models"
    shutil.copytree(TEST_MODELS, models)
    shutil.copytree(ROOT / "models" / "image-rules", models / "image-rules")
    return models


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), ("chat", "embed", "image-rules", "tiny"), repository)
    yield server
    server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(
    postgres: RunningPostgres,
    template: str,
    engine: RunningTriton,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Stack]:
    """In processes of their own: the tests here hold up this one's event loop."""
    trained("Once upon a time.").save(str(repository / "chat" / "1" / "tokenizer.json"))
    [port] = free_ports(1)
    running = Stack(f"http://127.0.0.1:{port}")
    logs = tmp_path_factory.mktemp("logs")
    async with AsyncExitStack() as opened:
        settings = Settings(
            database_url=await opened.enter_async_context(cloned_database(postgres, template)),
            triton_urls=(engine.grpc_url,),
            api_port=port,
            model_repository=str(repository),
            default_max_tokens=TOKENS,
            default_model="none",
            webhook_allow_private=True,
            probe_seconds=0.3,
        )
        for module in ("app.main", "app.worker"):
            await opened.enter_async_context(Process(module, settings, logs / f"{module}.log"))

        async def serving() -> bool:
            try:
                answer = await client.get("/health/ready")
            except httpx.TransportError:
                return False
            return answer.status_code == 200 and len(answer.json()["triton"][0]["ready_models"]) == 4

        async with httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
            await eventually(serving, "the API serves and sees the models", pause=0.2)
        database = await asyncpg.connect(settings.database_url)
        await running.fill(database)
        await database.close()
        yield running
