"""The API process: `python -m app.main`, or `uvicorn app.main:app`."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.api import contexts as contexts_routes
from app.api import health as health_routes
from app.api import models as models_routes
from app.api import results as results_routes
from app.api.body import BodyLimit
from app.api.dependencies import Services
from app.api.measure import Measure
from app.api.problems import install_handlers
from app.api.schemas import Problem
from app.config import Settings, SettingsError, load_settings
from app.db.engine import open_database
from app.queue.notify import Listener, SettledBoard
from app.queue.statements import SETTLED_CHANNEL
from app.queue.store import QueueStore
from app.services.catalog import Catalog
from app.services.contexts import Contexts
from app.services.health import Health
from app.services.results import Results
from app.telemetry import configure_logging
from app.triton.fleet import open_fleet

DESCRIPTION = """Send prompts to models on NVIDIA Triton and come back for the answers.

Store a prompt with `POST /contexts/`, send it with `POST /models/send/{model_name}/{context_id}`, and follow
`status_url` until the status is `completed` or `failed`."""
GRACEFUL_SECONDS = 10

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]


def create_app(settings: Settings | None = None) -> FastAPI:
    """Wires the API; nothing connects before the lifespan starts."""
    chosen = settings or load_settings()
    app = FastAPI(
        title="Triton tickets",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=_lifespan(chosen),
        redirect_slashes=False,
    )
    app.add_middleware(BodyLimit, max_bytes=chosen.max_body_bytes)
    app.add_middleware(Measure)
    install_handlers(app)
    for module in (models_routes, results_routes, contexts_routes, health_routes):
        app.include_router(module.router)
    _document_problems(app)
    return app


def _lifespan(settings: Settings) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        configure_logging(settings.log_level)
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(open_database(settings))
            fleet = await stack.enter_async_context(open_fleet(settings))
            board = SettledBoard()
            catalog = Catalog(database, fleet)
            store = QueueStore(database)
            contexts = Contexts(database, store, settings)
            services = Services(
                settings=settings,
                contexts=contexts,
                results=Results(database, store, contexts, catalog, board, settings),
                catalog=catalog,
                health=Health(database),
                fleet=fleet,
            )
            helpers = [
                asyncio.create_task(Listener(settings.database_url, {SETTLED_CHANNEL: board.received}).run()),
                asyncio.create_task(catalog.watch(settings.probe_seconds)),
            ]
            app.state.board = board
            # What was imported stays: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            try:
                yield {"services": services}
            finally:
                for helper in helpers:
                    helper.cancel()
                    with suppress(asyncio.CancelledError):
                        await helper

    return lifespan


def _document_problems(app: FastAPI) -> None:
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        document["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
        return document

    app.openapi = openapi  # type: ignore[method-assign]


class Server(uvicorn.Server):
    """Lets long-polls answer with the current state as soon as the process is asked to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        board: SettledBoard | None = getattr(self.config.app.state, "board", None)  # type: ignore[union-attr]
        if board is not None:
            board.close()
        super().handle_exit(sig, frame)


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"The API cannot start: {error}\n")
        return 2
    config = uvicorn.Config(
        create_app(settings),
        host=settings.api_host,
        port=settings.api_port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level=settings.log_level.lower(),
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        server_header=False,
    )
    server = Server(config)
    server.run()
    return 0 if server.started else 1


def __getattr__(name: str) -> FastAPI:
    # `uvicorn app.main:app` works, and importing this module reads no environment.
    if name == "app":
        return create_app()
    raise AttributeError(name)


if __name__ == "__main__":
    sys.exit(main())
