"""The controller of hosts: `python -m app.capacity`. Any number may run, one of them decides."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack
from functools import partial

import uvloop

from app.background import Background
from app.capacity.kinds import Kinds, open_kinds
from app.capacity.leadership import Leader
from app.capacity.left_running import left_running
from app.capacity.pools import Pools, load_pools
from app.capacity.reconcile import Reconciler
from app.config import Settings, SettingsError, load_settings
from app.db.engine import open_database
from app.db.faults import DATABASE_FAULT, DatabaseFault
from app.errors import DatabaseUnavailable
from app.queue.hosts import HostStore
from app.queue.leader import Leadership, LeaderStore
from app.services.changed_settings import ChangedSettings
from app.services.health import Health, migrated, require_database
from app.services.process_logs import Process, lines_kept, log_as_set
from app.services.webhooks import web_address
from app.telemetry import configure_logging, logger
from nvidia_triton.checked_yaml import UnusableFile
from nvidia_triton.providers.base import Refused

log = logger("capacity")


async def run(settings: Settings, kinds: Kinds, stop: asyncio.Event) -> None:
    """Decides until `stop` is set; hosts stay as they are then.

    Raises:
        Refused: the address for webhooks cannot be used.
    """
    alerts_url = _alerts_url(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(kinds.close)
        database = await stack.enter_async_context(open_database(settings))
        await stack.enter_async_context(lines_kept(database, Process.CAPACITY, settings))
        if not await migrated(Health(database), stop):
            return
        leader = Leader(LeaderStore(database), f"{socket.gethostname()}:{os.getpid()}", settings.capacity_lease_seconds)

        async def work(leadership: Leadership) -> None:
            await Reconciler(database, leadership, kinds, settings.capacity_seconds, alerts_url).run()

        async with Background() as background:
            background.start("settings", ChangedSettings(database, settings, log_as_set).run)
            background.start("capacity", partial(leader.lead, work))
            await stop.wait()
        try:
            hosts = await HostStore(database).live()
        except DatabaseUnavailable:
            log.warning("Postgres is away: whether hosts go on costing is not known; `make list-instances` shows it")
            return
        if said := left_running(hosts):
            sys.stderr.write(f"{said}\n")


def _alerts_url(settings: Settings) -> str | None:
    if not settings.capacity_webhook_url:
        return None
    try:
        return web_address(settings.capacity_webhook_url, settings)
    except ValueError as error:
        raise Refused(f"CAPACITY_WEBHOOK_URL {error}.") from None


async def _main(settings: Settings, pools: Pools) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await require_database(settings)
    kinds = open_kinds(
        pools, os.environ, bind=settings.capacity_bind, advertised=settings.capacity_address or settings.capacity_bind
    )
    for kind in kinds.of_pools:
        try:
            await kind.check_models()
        except Refused as error:
            log.error("no host can be made for a pool", pool=kind.pool.name, reason=str(error))
    await run(settings, kinds, stop)


def main() -> int:
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        pools = load_pools(settings.capacity_definitions)
        if not pools.entries:
            names = ", ".join(map(str, settings.capacity_definitions))
            sys.stderr.write(f"There are no pools in {names}: write some under `pools` (docs/capacity.md).\n")
            return 2
        uvloop.run(_main(settings, pools))
    except (SettingsError, UnusableFile, Refused) as error:
        sys.stderr.write(f"The controller of hosts cannot start: {error}\n")
        return 2
    except DatabaseFault as error:
        sys.stderr.write(f"The controller of hosts cannot start: {error}\n")
        return DATABASE_FAULT
    return 0


if __name__ == "__main__":
    sys.exit(main())
