"""The official client against the whole service, with models that chat and embed."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from app.config import Settings
from app.db.engine import Database
from tests.servers import TEST_MODELS, RunningTriton, copied_models, start_triton
from tests.service import Service

Rows = Callable[[], Any]
MODELS = ("tiny", "slow", "chat", "embed", "embed-vllm", "minilm")


@pytest.fixture(scope="session")
def served_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' models, and of the project's own the one that embeds."""
    names = sorted(each.name for each in TEST_MODELS.iterdir())
    return copied_models(tmp_path_factory.mktemp("models"), (*names, "minilm"))


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory, served_models: Path) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), MODELS, served_models)
    yield server
    server.stop()


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings], served_models: Path) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        return make_settings(**({"model_repository": str(served_models)} | changes))

    return make


def client_of(service: Service, **options: object) -> openai.AsyncOpenAI:
    values: dict[str, object] = {"api_key": "sk-none", "max_retries": 0, "timeout": 60} | options
    return openai.AsyncOpenAI(base_url=f"{str(service.client.base_url).rstrip('/')}/v1", **values)  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(service) as opened:
        yield opened


@pytest.fixture
def api_rows(database: Database) -> Rows:
    async def count() -> tuple[int, int]:
        async with database.hot() as connection:
            row = await connection.fetchrow("SELECT (SELECT count(*) FROM contexts), (SELECT count(*) FROM results)")
        return tuple(row)

    return count
