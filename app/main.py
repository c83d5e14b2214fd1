"""The API process: `python -m app.main`, or `uvicorn app.main:app`, where heads of requests have no bound."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from app.api import audit as audit_routes
from app.api import comparison_streams
from app.api import comparisons as comparisons_routes
from app.api import contexts as contexts_routes
from app.api import health as health_routes
from app.api import hosts as hosts_routes
from app.api import instructions as instructions_routes
from app.api import keys as keys_routes
from app.api import models as models_routes
from app.api import pages as pages_routes
from app.api import picks as picks_routes
from app.api import ratings as ratings_routes
from app.api import results as results_routes
from app.api import servers as servers_routes
from app.api import settings as settings_routes
from app.api import streams as streams_routes
from app.api import usage as usage_routes
from app.api import webhooks as webhooks_routes
from app.api.application import Application, HttpProtocol
from app.api.body_room import BodyRoom
from app.api.dependencies import PROBLEM_CONTENT, Services
from app.api.envelope import Envelope
from app.api.faces import anthropic, protollm, semoss, semoss_generate, tgi, tgi_openai
from app.api.health import is_untraced
from app.api.local import Connections
from app.api.openai import (
    batches,
    chat,
    completions,
    conversations,
    embeddings,
    files,
    images,
    responses,
    tokens,
    uploads,
)
from app.api.openai import models as openai_models
from app.api.problems import install_handlers, is_openai
from app.api.proxy import Proxied
from app.api.schemas import Problem
from app.api.security import no_route, require_declared
from app.api.spool import Spool
from app.background import Background
from app.config import Settings, SettingsError, load_settings
from app.console.routes import PAGES
from app.db.engine import open_database
from app.db.faults import DATABASE_FAULT, DatabaseFault
from app.fleet.fleet import open_fleet
from app.garbage import collect_rarely
from app.openai.batch_lines import preparing
from app.openai.conversation_items import items_of_turn
from app.prompts.adapters import Adapters
from app.prompts.parsers import Parsers
from app.prompts.profiles import Profiles
from app.prompts.templates import Templates
from app.prompts.tokenizers import Tokenizers
from app.queue.changed_settings import SETTINGS_CHANNEL
from app.queue.deliveries import DeliveryStore
from app.queue.events import ROWS_CHANNEL
from app.queue.notify import Listener, SettledBoard, all_of
from app.queue.outputs import OutputStore
from app.queue.planned import SUBMITTING
from app.queue.servers import SERVERS_CHANNEL, ServerStore
from app.queue.statements.channels import SETTLED_CHANNEL
from app.queue.store import QueueStore
from app.services.addresses import AddressPolicy
from app.services.audit import Audit
from app.services.backlog import BacklogGauges
from app.services.batch_checks import BatchChecks
from app.services.batches import Batches
from app.services.catalog import Catalog
from app.services.changed_settings import ChangedSettings
from app.services.chats import Chats
from app.services.checkers import Checkers
from app.services.comparisons import Comparisons
from app.services.contexts import Contexts
from app.services.conversations import Conversations
from app.services.files import Files
from app.services.health import Health, require_database
from app.services.hosts import Hosts
from app.services.image_fetching import ImageFetcher
from app.services.inputs import Inputs
from app.services.instructions import Instructions
from app.services.keys import Keys
from app.services.limits import Limits
from app.services.loading import Loader
from app.services.meaning import Meaning
from app.services.model_orders import ModelOrders
from app.services.outbound import Sender
from app.services.outputs import Outputs
from app.services.overview import Overviews
from app.services.picks import Picks
from app.services.process_logs import Process, ProcessLogs, lines_kept, log_as_set
from app.services.pulse import Pulse
from app.services.ratings import Ratings
from app.services.results import READING, Results
from app.services.servers import Servers
from app.services.sessions import Sessions
from app.services.streams import Streams
from app.services.submissions import Submissions
from app.services.ticket_list import TicketList
from app.services.uploads import Uploads
from app.services.usage import Usage
from app.services.webhooks import Webhooks
from app.services.wishes import Wishes
from app.telemetry import configure_logging, tracing

DESCRIPTION = """Send prompts to models on NVIDIA Triton and come back for the answers.

Store a prompt with `POST /contexts/`, send it with `POST /models/send/{model_name}/{context_id}`, and follow
`status_url` until the status is `completed` or `failed`."""
# For pages elsewhere; they send a key in a header, never a cookie.
CORS: dict[str, Any] = {
    "allow_methods": ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"],
    "allow_headers": ["*"],
    "expose_headers": [
        "Idempotent-Replayed",
        "Link",
        "Location",
        "Preference-Applied",
        "Request-Id",
        "Retry-After",
        "WWW-Authenticate",
        "X-Ignored",
        "X-Request-Id",
        "X-Result-Id",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
    ],
}
# What Envelope answers, wherever a path has a place for a text.
MALFORMED = {"description": "The path holds control characters", "content": PROBLEM_CONTENT}
GRACEFUL_SECONDS = 10
IMAGES_AT_ONCE = 32

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]


def create_app(settings: Settings | None = None) -> FastAPI:
    """Wires the API; nothing connects before the lifespan starts."""
    chosen = settings or load_settings()
    app = Application(
        title="Triton tickets",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=_lifespan(chosen),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        telemetry={
            "tracing": tracing.wanted(chosen.otel_exporter_otlp_endpoint),
            "operation_spans": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
            "exclude": is_untraced,
        },
    )
    # FastAPI's own: the OpenAPI document.
    open_paths = [route.path for route in app.routes if isinstance(route, Route)]
    app.router.default = no_route
    app.add_middleware(Envelope, handlers=app.exception_handlers)
    if chosen.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=chosen.cors_origins, **CORS)
    app.add_middleware(Proxied, root_path=chosen.root_path, trusted=chosen.trusted_proxies)
    install_handlers(app)
    # Not FastAPI's include_router: it would have each router look for its routes by itself, and the right one twice.
    for module in (
        *(models_routes, results_routes, streams_routes, contexts_routes, comparisons_routes, comparison_streams),
        *(picks_routes, ratings_routes, instructions_routes),
        *(keys_routes, usage_routes, audit_routes, servers_routes, hosts_routes, settings_routes),
        *(webhooks_routes, health_routes, pages_routes),
        *(chat, completions, responses, conversations, embeddings, images),
        *(files, uploads, batches, openai_models, tokens),
        *(anthropic, tgi, tgi_openai, protollm, semoss, semoss_generate),
        *PAGES,
    ):
        app.router.routes.extend(module.router.routes)
    require_declared(app, open_paths)
    _document_problems(app)
    return app


def _lifespan(settings: Settings) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        configure_logging(settings.log_level)
        tracing.start("tickets-api", settings.otel_exporter_otlp_endpoint)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(tracing.stop)
            database = await stack.enter_async_context(open_database(settings))
            state = await Health(database).database()
            if state.lasting:
                raise DatabaseFault(state.detail)
            await stack.enter_async_context(lines_kept(database, Process.API, settings))
            fleet = await stack.enter_async_context(open_fleet(settings, ServerStore(database)))
            board = SettledBoard()
            catalog = Catalog(database, fleet)
            store = QueueStore(database)
            contexts = Contexts(database, store, settings)
            limits = Limits(database)
            wishes = Wishes(catalog, fleet, ServerStore(database))
            results = Results(database, store, catalog, wishes, board, settings)
            inputs = Inputs(catalog)
            submissions = Submissions(store, contexts, results, catalog, limits, inputs, wishes, settings)
            streams = Streams(database, results, settings)
            stored_files = Files(database, store, settings)
            backlog = BacklogGauges(database, catalog)
            stack.push_async_callback(backlog.close)
            parsers = Parsers(settings)
            keys = Keys(database)
            servers = Servers(database, settings, fleet)
            model_orders = ModelOrders(database, servers)
            stack.push_async_callback(model_orders.close)
            hosts = Hosts(database)
            comparisons = Comparisons(database, store, contexts, results, submissions, limits, settings)
            pulse = Pulse()
            changed_settings = ChangedSettings(database, settings, log_as_set)
            checkers = Checkers("app.checker", settings, catalog.seen) if settings.batch_checkers else None
            if checkers is not None:
                stack.push_async_callback(checkers.close)
            services = Services(
                settings=settings,
                contexts=contexts,
                results=results,
                conversations=Conversations(database, settings, items_of_turn),
                submissions=submissions,
                inputs=inputs,
                images=await _images(stack, settings),
                outputs=Outputs(OutputStore(database), results),
                streams=streams,
                comparisons=comparisons,
                picks=Picks(database, comparisons),
                chats=Chats(database, contexts),
                meaning=Meaning(database, submissions, results, contexts, catalog, settings),
                ratings=Ratings(database, results),
                instructions=Instructions(database),
                templates=Templates(settings),
                parsers=parsers,
                profiles=Profiles(settings, parsers),
                tokenizers=Tokenizers(settings),
                catalog=catalog,
                adapters=Adapters(catalog, settings),
                health=Health(database),
                keys=keys,
                limits=limits,
                usage=Usage(database),
                audit=Audit(database),
                webhooks=Webhooks(DeliveryStore(database), results),
                files=stored_files,
                uploads=Uploads(database, stored_files),
                batches=Batches(database, store, stored_files, settings),
                batch_checks=BatchChecks(database, checkers, settings),
                backlog=backlog,
                fleet=fleet,
                servers=servers,
                model_orders=model_orders,
                hosts=hosts,
                wishes=wishes,
                connections=Connections(),
                spool=Spool(settings),
                bodies=BodyRoom(settings),
                sessions=Sessions(database, keys),
                ticket_list=TicketList(database),
                overviews=Overviews(database, catalog, servers, hosts),
                pulse=pulse,
                process_logs=ProcessLogs(database),
                changed_settings=changed_settings,
            )
            prepare = preparing(replace(services, images=None))
            loader = Loader(database, stored_files, prepare, checkers, services.batches.arrived, settings)
            listener = Listener(
                settings.listen_arguments,
                {
                    SETTLED_CHANNEL: all_of(board.received, streams.announced, pulse.announced),
                    ROWS_CHANNEL: streams.rows_announced,
                    SERVERS_CHANNEL: catalog.servers_announced,
                    SETTINGS_CHANNEL: changed_settings.announced,
                },
            )
            background = await stack.enter_async_context(Background())
            background.start("listener", listener.run)
            background.start("connections", partial(database.keep_ready, [*SUBMITTING, READING]))
            background.start("settings", changed_settings.run)
            background.start("streams", streams.run)
            background.start("fleet", partial(catalog.watch, settings.probe_seconds))
            background.start("limits", limits.share)
            background.start("batches", loader.run)
            app.state.board = board
            app.state.streams = streams
            collect_rarely()
            yield {"services": services}

    return lifespan


async def _images(stack: AsyncExitStack, settings: Settings) -> ImageFetcher | None:
    if not settings.fetch_images:
        return None
    sender = await stack.enter_async_context(Sender(AddressPolicy(), IMAGES_AT_ONCE))
    return ImageFetcher(sender, settings.max_body_bytes)


def _document_problems(app: FastAPI) -> None:
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        document["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
        # What FastAPI adds by itself for every route with parameters.
        for path, operations in document["paths"].items():
            if "{" in path and not is_openai(path):
                for operation in operations.values():
                    operation["responses"].setdefault("400", MALFORMED)
            if is_openai(path):
                for operation in operations.values():
                    operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


class Server(uvicorn.Server):
    """Lets long-polls answer, and streams end, as soon as the process is asked to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        board: SettledBoard | None = getattr(self.config.app.state, "board", None)  # type: ignore[union-attr]
        if board is not None:
            board.close()
        streams: Streams | None = getattr(self.config.app.state, "streams", None)  # type: ignore[union-attr]
        if streams is not None:
            streams.close()
        super().handle_exit(sig, frame)


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"The API cannot start: {error}\n")
        return 2
    try:
        uvloop.run(require_database(settings))
    except DatabaseFault as error:
        sys.stderr.write(f"The API cannot start: {error}\n")
        return DATABASE_FAULT
    config = uvicorn.Config(
        create_app(settings),
        host=settings.api_host,
        port=settings.api_port,
        loop="uvloop",
        http=HttpProtocol,
        access_log=False,
        log_level=settings.log_level.lower(),
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        server_header=False,
        # Proxied does it.
        proxy_headers=False,
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
