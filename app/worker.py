"""The dispatcher process: `python -m app.worker`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack
from functools import partial

import uvloop
from prometheus_client import start_http_server

from app.api.schemas import Result
from app.background import Background
from app.config import Settings, SettingsError, load_settings
from app.db.engine import open_database
from app.db.faults import DATABASE_FAULT, DatabaseFault
from app.dispatch.batches import batch_work
from app.dispatch.janitor import housekeeping
from app.dispatch.loop import Dispatcher
from app.dispatch.lost_hosts import LostHosts
from app.dispatch.ordered_loads import OrderedLoads
from app.dispatch.question_vectors import QuestionVectors
from app.dispatch.recovery import Recovery
from app.dispatch.webhooks import deliver_forever, drop_deliveries_forever
from app.fleet.fleet import open_fleet
from app.garbage import collect_rarely
from app.openai.batch_lines import defective_line, render_line
from app.openai.conversation_items import items_of_turn
from app.prompts.templates import Templates
from app.queue.audit import AuditStore
from app.queue.changed_settings import SETTINGS_CHANNEL
from app.queue.events import STREAM_CHANNEL, EventStore
from app.queue.hosts import HostStore
from app.queue.notify import Listener
from app.queue.ordered_models import OrderedModels
from app.queue.planned import DISPATCHING
from app.queue.servers import SERVERS_CHANNEL, ServerStore
from app.queue.set_aside import SetAsideStore
from app.queue.slots import SlotStore
from app.queue.statements.channels import CANCEL_CHANNEL, QUEUED_CHANNEL
from app.queue.store import QueueStore
from app.queue.unkept import UnkeptStore
from app.queue.words import WordStore
from app.services.catalog import Catalog
from app.services.changed_settings import ChangedSettings
from app.services.conversations import Conversations
from app.services.health import Health, migrated, require_database
from app.services.process_logs import Process, lines_kept, log_as_set
from app.telemetry import configure_logging, logger, tracing

log = logger("worker")


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Dispatches until `stop` is set."""
    name = f"{socket.gethostname()}:{os.getpid()}"
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        await stack.enter_async_context(lines_kept(database, Process.DISPATCHER, settings))
        fleet = await stack.enter_async_context(open_fleet(settings, ServerStore(database)))
        if not await migrated(Health(database), stop):
            return
        store = QueueStore(database)
        events = EventStore(database)
        recovery = Recovery(SetAsideStore(database), fleet, name, settings)
        ordered_loads = OrderedLoads(OrderedModels(database), fleet)
        await fleet.follow()
        await recovery.learn()
        slots = SlotStore(database)
        dispatcher = Dispatcher(
            store, events, fleet, slots, LostHosts(HostStore(database)), Templates(settings), settings, name
        )
        catalog = Catalog(database, fleet)
        changed_settings = ChangedSettings(database, settings, log_as_set)
        listener = Listener(
            settings.listen_arguments,
            {
                QUEUED_CHANNEL: dispatcher.work_announced,
                CANCEL_CHANNEL: dispatcher.cancel_announced,
                STREAM_CHANNEL: dispatcher.follow_announced,
                SERVERS_CHANNEL: catalog.servers_announced,
                SETTINGS_CHANNEL: changed_settings.announced,
            },
        )
        background = await stack.enter_async_context(Background())
        background.start("listener", listener.run)
        background.start("connections", partial(database.keep_ready, DISPATCHING))
        background.start("fleet", partial(catalog.watch, settings.probe_seconds))
        background.start("settings", changed_settings.run)
        background.start("recovery", partial(recovery.watch, settings.probe_seconds))
        background.start("ordered loads", partial(ordered_loads.watch, settings.probe_seconds))
        background.start("webhooks", partial(deliver_forever, database, settings, Result.of))
        background.start("deliveries", partial(drop_deliveries_forever, database))
        for task, work in housekeeping(
            store,
            slots,
            UnkeptStore(database),
            Conversations(database, settings, items_of_turn),
            AuditStore(database),
            events,
            HostStore(database),
            WordStore(database),
            settings,
        ):
            background.start(task, work)
        for task, work in batch_work(database, settings, render_line, defective_line):
            background.start(task, work)
        if (model := settings.search_embedding_model) is not None:
            background.start("question vectors", QuestionVectors(database, store, catalog, settings, model).run)
        log.info("dispatching", name=name, servers=",".join(server.url for server in fleet.servers) or "none")
        collect_rarely()
        await dispatcher.run(stop)
    log.info("stopped", name=name)


async def _main(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await require_database(settings)
        await run(settings, stop)
    finally:
        await tracing.stop()


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"The dispatcher cannot start: {error}\n")
        return 2
    configure_logging(settings.log_level)
    tracing.start("tickets-dispatcher", settings.otel_exporter_otlp_endpoint)
    if settings.dispatcher_metrics_port:
        start_http_server(settings.dispatcher_metrics_port)
    try:
        uvloop.run(_main(settings))
    except DatabaseFault as error:
        sys.stderr.write(f"The dispatcher cannot start: {error}\n")
        return DATABASE_FAULT
    return 0


if __name__ == "__main__":
    sys.exit(main())
