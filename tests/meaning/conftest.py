"""A service whose chats are searched by meaning, with the real model that makes vectors, and a real browser."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.config import Settings
from app.services.sessions import form_token
from tests.console.conftest import browser, visit
from tests.console.test_entrance import COOKIE
from tests.keys.conftest import make_key
from tests.servers import RunningTriton, copied_models, start_triton
from tests.service import Service, eventually, running_api, running_dispatcher

__all__ = ["browser", "make_key", "visit"]

MODELS = ("chat", "minilm", "embed")


@pytest.fixture(scope="session")
def served_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_models(tmp_path_factory.mktemp("models"), MODELS)


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory, served_models: Path) -> Iterator[RunningTriton]:
    server = start_triton(tmp_path_factory.mktemp("triton"), MODELS, served_models)
    yield server
    server.stop()


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings], served_models: Path) -> Callable[..., Settings]:
    def make(**changes: object) -> Settings:
        values = {"model_repository": str(served_models), "search_embedding_model": "minilm"}
        return make_settings(**(values | changes))

    return make


@pytest_asyncio.fixture
async def guarded(make_settings: Callable[..., Settings]) -> AsyncIterator[Service]:
    """API and dispatcher, with keys required."""
    settings = make_settings(auth_required=True)
    async with running_api(settings) as running, running_dispatcher(settings):
        yield running


async def ask(client: httpx.AsyncClient, message: str) -> str:
    """Begins a chat; returns the ticket's id."""
    form = {"form": form_token(client.cookies[COOKIE]), "model": "chat", "message": message}
    begun = await client.post("/console/chat", data=form)
    assert begun.status_code == 303, begun.text
    return str(begun.headers["location"].split("at=")[1].split("#")[0])


async def vectors(rows: Any, number: int) -> None:
    """Waits for so many vectors, and for the tickets that made them to be gone."""

    async def made() -> bool:
        there = await rows.fetchval("SELECT count(*) FROM question_vectors WHERE vector IS NOT NULL")
        left = await rows.fetchval("SELECT count(*) FROM results WHERE client_reference = 'search by meaning'")
        return (there, left) == (number, 0)

    await eventually(made, f"{number} vectors")
