"""The whole service for clients: a real language model, one that embeds, and one that says what it is told to."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.config import Settings
from app.db.engine import open_database
from app.queue.audit import Actor
from app.services.keys import Keys, NewKey
from nvidia_triton.local.settings import ROOT
from tests.conftest import alembic
from tests.postgres_server import start_postgres
from tests.servers import TEST_MODELS, RunningTriton, start_triton
from tests.service import Service, eventually, running_api, running_dispatcher

MODELS = ("demo", "minilm", "chat")


@dataclass(frozen=True)
class Stack:
    url: str
    key: str


@asynccontextmanager
async def running_stack(folder: Path) -> AsyncIterator[Stack]:
    """All processes are this one's, on free ports, and end with it. Requests need a key."""
    repository = folder / "models"
    for each in (ROOT / "models" / "demo", ROOT / "models" / "minilm", TEST_MODELS / "chat"):
        shutil.copytree(each, repository / each.name)
    arguments = repository / "chat" / "1" / "model.json"
    arguments.write_text(json.dumps(json.loads(arguments.read_text()) | {"max_model_len": 65536}))
    async with AsyncExitStack() as stack:
        postgres = start_postgres(folder / "postgres", settings={"max_connections": "100"})
        stack.callback(postgres.stop)
        real = stack.enter_context(_triton(folder / "real", repository, ("demo", "minilm"), engine=None))
        told = stack.enter_context(_triton(folder / "told", repository, ("chat",), engine="simulation"))
        settings = Settings(
            database_url=postgres.url,
            triton_urls=(real.grpc_url, told.grpc_url),
            model_repository=str(repository),
            auth_required=True,
            poll_seconds=0.2,
            probe_seconds=0.3,
            drain_seconds=5.0,
            log_level="WARNING",
        )
        migrated = await asyncio.to_thread(alembic, postgres.url, "upgrade", "head")
        assert migrated.returncode == 0, migrated.stderr
        async with open_database(settings) as database:
            _, key = await Keys(database).create(NewKey("clients"), Actor(None, "tests"))
        service = await stack.enter_async_context(running_api(settings))
        await stack.enter_async_context(running_dispatcher(settings))
        await eventually(lambda: _ready(service, key), "the models are ready", 120)
        yield Stack(f"{str(service.client.base_url).rstrip('/')}/v1", key)


async def _ready(service: Service, key: str) -> bool:
    answer = await service.client.get("/models/", headers={"Authorization": f"Bearer {key}"})
    return {each["name"] for each in answer.json() if each["state"] == "ready"} >= set(MODELS)


@contextmanager
def _triton(folder: Path, repository: Path, models: tuple[str, ...], engine: str | None) -> Iterator[RunningTriton]:
    before = os.environ.pop("ENGINE", None)
    if engine:
        os.environ["ENGINE"] = engine
    try:
        server = start_triton(folder, models, repository)
    finally:
        os.environ.pop("ENGINE", None)
        if before is not None:
            os.environ["ENGINE"] = before
    yield server
    server.stop()
