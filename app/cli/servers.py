"""Servers from a terminal: `python -m app.cli.servers`, `add NAME ADDRESS`, `drain`, `activate` or `remove NAME`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from app.cli.command import run
from app.config import Settings
from app.db.engine import Database
from app.services.audit import command_actor
from app.services.servers import KINDS, ServerChange, ServerCreate, Servers, ServerView

WANTED = {"drain": "draining", "disable": "disabled", "activate": "active"}
PRICES = ("hourly_price", "prompt_token_price", "completion_token_price")
TIMEOUTS = ("connect", "first_token", "between_tokens", "total")
WIDE = 200


def main() -> int:
    arguments = _parser().parse_args()

    async def work(database: Database, settings: Settings) -> None:
        servers, actor = Servers(database, settings), command_actor()
        match arguments.command:
            case None | "list":
                _show(await servers.list())
            case "add":
                added = await servers.add(_asked_for(arguments), actor)
                print(f"Server {added.name} is added; the processes use it within a second or so.")
            case "remove":
                await servers.remove(await servers.named(arguments.name), actor)
                print(f"Server {arguments.name} is removed; what it has in flight is finished.")
            case command:
                change = ServerChange.model_validate({"wanted": WANTED[command]})
                changed = await servers.change(await servers.named(arguments.name), change, actor)
                print(f"Server {changed.name} is {WANTED[command]}.")

    return run(work)


def _asked_for(arguments: argparse.Namespace) -> ServerCreate:
    given = vars(arguments)
    fields = {name: given[name] for name in ("name", "address", "kind", "concurrency", "credential", *PRICES)}
    fields["models"] = dict(arguments.models) if arguments.models else None
    fields["timeouts"] = {name: given[f"{name}_timeout"] for name in TIMEOUTS}
    return ServerCreate.model_validate({name: value for name, value in fields.items() if value is not None})


def _show(found: Sequence[ServerView]) -> None:
    if not found:
        print("There are no servers: add one with `make servers ADD=NAME ADDRESS=10.0.0.5:8001`.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "kind", "address", "wanted", "slots a model", "price", "from"):
        table.add_column(title, overflow="fold")
    for server in found:
        table.add_row(
            server.name,
            server.kind,
            server.address,
            server.wanted,
            str(server.concurrency),
            _price(server),
            server.origin,
        )
    # Piped somewhere, nothing is cut off.
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(table)


def _price(server: ServerView) -> str:
    parts = []
    if server.hourly_price is not None:
        parts.append(f"${server.hourly_price:g}/h")
    tokens = (server.prompt_token_price, server.completion_token_price)
    if any(price is not None for price in tokens):
        parts.append("$" + " + ".join(f"{price or 0:g}" for price in tokens) + "/M tokens")
    return ", ".join(parts) or "-"


def _alias(text: str) -> tuple[str, str]:
    theirs, _, ours = text.rpartition("=")
    if not theirs or not ours:
        raise argparse.ArgumentTypeError(f"{text!r} is not THEIRS=OURS")
    return theirs, ours


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.cli.servers", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="all servers; so does no command")
    add = commands.add_parser("add", help="add a server")
    add.add_argument("name")
    add.add_argument("address", help="host:port of Triton's gRPC endpoint; a URL for other kinds")
    add.add_argument("--kind", default="triton", help=f"one of {', '.join(KINDS)}")
    add.add_argument("--models", nargs="+", type=_alias, metavar="THEIRS=OURS", help="aliases")
    add.add_argument("--concurrency", type=int, help="requests of each model at once")
    add.add_argument("--credential", help="where the secret is: env:NAME or file:PATH")
    for name in PRICES:
        add.add_argument(f"--{name.replace('_', '-')}", type=float, help="dollars; tokens by the million")
    for name in TIMEOUTS:
        add.add_argument(f"--{name.replace('_', '-')}-timeout", type=float, help="seconds")
    sentences: dict[str, Any] = {
        "drain": "it gets nothing more, and finishes what it has",
        "disable": "nor is it asked for its state",
        "activate": "it gets work again",
        "remove": "take it out; what it has in flight is finished",
    }
    for command, sentence in sentences.items():
        commands.add_parser(command, help=sentence).add_argument("name", help="its name or id")
    return parser


if __name__ == "__main__":
    sys.exit(main())
