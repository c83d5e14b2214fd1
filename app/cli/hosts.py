"""Hosts from a terminal: `python -m app.cli.hosts`, `drain`, `destroy`, `lock` or `unlock HOST`, `show HOST`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from app.cli.command import run
from app.config import Settings
from app.db.engine import Database
from app.services.audit import command_actor
from app.services.hosts import HostDetail, Hosts, HostView

SHOWN = 50
WIDE = 200
FOLLOW_SECONDS = 1.0
SAID = {
    "drain": "gets nothing more, finishes what it has, and is destroyed",
    "destroy": "is destroyed; what runs there is run again elsewhere",
    "lock": "is not ended for want of work",
    "unlock": "may be ended for want of work again",
}


def main() -> int:
    arguments = _parser().parse_args()

    async def work(database: Database, _: Settings) -> None:
        hosts, actor = Hosts(database), command_actor()
        console = Console() if sys.stdout.isatty() else Console(width=WIDE)
        match arguments.command:
            case None | "list":
                await _list(hosts, console, follow=getattr(arguments, "follow", False))
            case "show":
                _show(console, await hosts.get(await hosts.named(arguments.host)))
            case command:
                id_ = await hosts.named(arguments.host)
                match command:
                    case "drain":
                        host = await hosts.drain(id_, actor)
                    case "destroy":
                        host = await hosts.destroy(id_, actor)
                    case _:
                        host = await hosts.lock(id_, command == "lock", actor)
                print(f"Host {host.label} {SAID[command]}.")

    return run(work)


async def _list(hosts: Hosts, console: Console, *, follow: bool) -> None:
    if not follow or not console.is_terminal:
        console.print(_table(await hosts.list(SHOWN)))
        return
    with Live(_table(await hosts.list(SHOWN)), console=console, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            live.update(_table(await hosts.list(SHOWN)), refresh=True)


def _table(hosts: Sequence[HostView]) -> Table | str:
    if not hosts:
        return "No host was ever rented: docs/capacity.md says how pools are made."
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("host", "pool", "state", "since", "gpu", "price", "cost", "generations", "last request", "why"):
        table.add_column(title, overflow="fold")
    for host in sorted(hosts, key=lambda each: each.ended_at is not None):
        table.add_row(
            host.label,
            host.pool,
            host.state + (" (locked)" if host.locked else ""),
            f"{host.state_since:%H:%M:%S}",
            host.gpu or "-",
            f"${host.hourly_price:.3f}/h",
            f"${host.cost:.4f}",
            str(host.generations),
            f"{host.last_request_at:%H:%M:%S}" if host.last_request_at else "-",
            host.failure or host.progress or host.reason,
        )
    live = [host for host in hosts if host.ended_at is None]
    table.caption = (
        f"{len(live)} cost ${sum(host.hourly_price for host in live):.3f} an hour now; all that are shown came to "
        f"${sum(host.cost for host in hosts):.4f}. Times are UTC."
    )
    return table


def _show(console: Console, host: HostDetail) -> None:
    console.print(_table([host]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("at", "state", "what"):
        table.add_column(title, overflow="fold")
    for event in host.events:
        table.add_row(f"{event.at:%Y-%m-%d %H:%M:%S}", event.state, event.progress or event.reason)
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.cli.hosts", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    listed = commands.add_parser("list", help="all hosts; so does no command")
    listed.add_argument("--follow", action="store_true", help="until Ctrl-C")
    commands.add_parser("show", help="one host and its life").add_argument("host", help="its label or id")
    for command, sentence in SAID.items():
        commands.add_parser(command, help=f"it {sentence}").add_argument("host", help="its label or id")
    return parser


if __name__ == "__main__":
    sys.exit(main())
