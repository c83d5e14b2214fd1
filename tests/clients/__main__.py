"""Runs clients against the service and prints what passed: python -m tests.clients [NAME ...]

Each is installed below `.clients/` first. `--document` prints what docs/clients.md says of them instead.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.clients.installing import NotInstalledError, folder_of, install
from tests.clients.running import Outcome, run
from tests.clients.stack import running_stack
from tests.clients.table import Client, document, load


def chosen(names: list[str]) -> list[Client]:
    clients = {each.name: each for each in load()}
    unknown = [name for name in names if name not in clients]
    if unknown:
        sys.exit(f"There is no client {', '.join(unknown)}: CLIENTS may name {', '.join(clients)}.")
    return [clients[name] for name in names or clients]


async def main(names: list[str]) -> int:
    console = Console()
    table = Table("client", "version", "passed", "why not", title="clients")
    failed = skipped = 0
    folders: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    clients = chosen(names)
    for client in clients:
        with console.status(f"installing {client.name}"):
            try:
                folders[client.name] = await asyncio.to_thread(install, client)
            except NotInstalledError as missing:
                reasons[client.name] = str(missing)
                console.print(f"[bold yellow]SKIPPED {client.name}[/]: {escape(str(missing))}", soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        async with running_stack(Path(folder)) as stack:
            for client in clients:
                if client.name in reasons:
                    skipped += 1
                    table.add_row(client.name, client.version, "[yellow]skipped[/]", escape(reasons[client.name]))
                    continue
                with console.status(f"running {client.name}"):
                    outcome = await run(client, folders[client.name], stack)
                failed += bool(outcome.reason)
                row(console, table, client, outcome)
    console.print(table)
    console.print(f"{len(clients) - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def row(console: Console, table: Table, client: Client, outcome: Outcome) -> None:
    passed = ", ".join(outcome.passed) or "nothing"
    if outcome.reason:
        console.print(f"[bold red]FAILED {client.name}[/]: {folder_of(client) / 'last.log'}", soft_wrap=True)
        table.add_row(client.name, client.version, f"[red]{passed}[/]", escape(outcome.reason))
    else:
        table.add_row(client.name, client.version, f"[green]{passed}[/]", escape(client.note))


if __name__ == "__main__":
    if sys.argv[1:] == ["--document"]:
        sys.stdout.write(document())
    else:
        sys.exit(asyncio.run(main(sys.argv[1:])))
