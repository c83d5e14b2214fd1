"""API keys from a terminal: `python -m app.cli.keys create NAME`, `list`, `revoke ID`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from app.cli.command import run
from app.config import Settings
from app.db.engine import Database
from app.services.audit import command_actor
from app.services.callers import Scope
from app.services.keys import (
    LONGEST_DAYS,
    LONGEST_MODEL,
    MOST_BYTES,
    MOST_DOLLARS,
    MOST_MODELS,
    MOST_OF_A_LIMIT,
    MOST_TOKENS,
    MOST_WEIGHT,
    Keys,
    NewKey,
)
from app.services.webhooks import LONGEST_URL, Webhook, accepted

LONGEST_NAME = 200


def main() -> int:
    arguments = _parser().parse_args()

    async def work(database: Database, settings: Settings) -> None:
        keys = Keys(database)
        match arguments.command:
            case "create":
                row, key = await keys.create(_asked_for(arguments, settings), command_actor())
                print(f"{_described(row)}\nThis is the only time it is shown:", file=sys.stderr)
                print(key)
            case "list":
                _show(await keys.list())
            case "revoke":
                await keys.revoke(arguments.id, command_actor())
                print(f"Key {arguments.id} is revoked; API processes know it within three seconds.")

    return run(work)


def _asked_for(arguments: argparse.Namespace, settings: Settings) -> NewKey:
    webhook = accepted(Webhook(url=arguments.webhook), settings) if arguments.webhook else None
    return NewKey(
        name=arguments.name,
        owner=arguments.owner,
        scopes=arguments.scopes,
        expires_days=arguments.expires_days,
        requests_per_minute=arguments.requests_per_minute,
        pending_limit=arguments.pending,
        tokens_per_day=arguments.tokens_per_day,
        tokens_per_month=arguments.tokens_per_month,
        dollars_per_day=arguments.dollars_per_day,
        dollars_per_month=arguments.dollars_per_month,
        storage_bytes=arguments.storage_bytes,
        person=arguments.person,
        models=arguments.models,
        weight=arguments.weight,
        webhook=webhook,
    )


def _described(row: Mapping[str, Any]) -> str:
    return f"API key {row['id']} of {row['owner']}, for {', '.join(row['scopes'])}; {_limits(row)}, {_life(row)}."


def _limits(row: Mapping[str, Any]) -> str:
    words = {
        "requests_per_minute": "{:,} requests a minute",
        "pending_limit": "{:,} tickets pending",
        "tokens_per_day": "{:,} tokens a day",
        "tokens_per_month": "{:,} tokens a month",
        "dollars_per_day": "${:,.2f} a day",
        "dollars_per_month": "${:,.2f} a month",
        "storage_bytes": "{:,} bytes of files",
    }
    limits = [text.format(row[name]) for name, text in words.items() if row[name] is not None]
    if row["models"] is not None:
        limits.append(f"for {', '.join(row['models'])} only")
    return ", ".join(limits) or "no limits"


def _life(row: Mapping[str, Any]) -> str:
    return f"until {row['expires_at']:%Y-%m-%d %H:%M} UTC" if row["expires_at"] else "without an end"


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        whose = row["name"] if row["owner"] == row["name"] else f"{row['name']}, owner {row['owner']}"
        if row["person"] is not None:
            whose += f", used by {row['person']}"
        print(f"{row['id']}  {row['state']}  {row['hint']}  {whose}")
        print(f"    {' '.join(row['scopes'])}; {_limits(row)}; weight {row['weight']}; {_life(row)}")
    if not rows:
        print("There is no API key yet: `make key NAME=...` makes one.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.cli.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("name", type=_name, help="what you call it by")
    create.add_argument("--owner", type=_name, help="whom it belongs to; by default somebody of the key's own name")
    create.add_argument("--scopes", type=_scopes, default=(Scope.READ, Scope.SUBMIT), help="of: read submit admin")
    create.add_argument("--expires-days", type=_number(float, LONGEST_DAYS))
    create.add_argument("--requests-per-minute", type=_number(int, MOST_OF_A_LIMIT))
    create.add_argument("--pending", type=_number(int, MOST_OF_A_LIMIT), help="most tickets pending")
    create.add_argument("--tokens-per-day", type=_number(int, MOST_TOKENS))
    create.add_argument("--tokens-per-month", type=_number(int, MOST_TOKENS))
    create.add_argument("--dollars-per-day", type=_number(float, MOST_DOLLARS))
    create.add_argument("--dollars-per-month", type=_number(float, MOST_DOLLARS))
    create.add_argument("--storage-bytes", type=_number(int, MOST_BYTES), help="what the owner's files may come to")
    create.add_argument("--person", type=_name, help="who uses it")
    create.add_argument("--models", type=_models, help="the only models it may use, by their ids in GET /v1/models")
    create.add_argument("--weight", type=_number(int, MOST_WEIGHT), help="the owner's share when owners take turns")
    create.add_argument("--webhook", type=_url, help="URL to tell of the end of results that name no webhook")
    commands.add_parser("list", help="show all keys")
    commands.add_parser("revoke", help="end a key for good").add_argument("id", type=_id)
    return parser


def _name(text: str) -> str:
    if not text.strip() or len(text) > LONGEST_NAME or not text.isprintable():
        raise argparse.ArgumentTypeError(f"a name has 1 to {LONGEST_NAME} printable characters")
    return text


def _url(text: str) -> str:
    if not text or len(text) > LONGEST_URL:
        raise argparse.ArgumentTypeError(f"a URL has 1 to {LONGEST_URL:,} characters")
    return text


def _scopes(text: str) -> list[Scope]:
    words = text.replace(",", " ").split()
    unknown = [word for word in words if word not in list(Scope)]
    if unknown or not words:
        raise argparse.ArgumentTypeError(f"scopes are {', '.join(Scope)}; {' '.join(unknown) or 'none'} was given")
    return [Scope(word) for word in words]


def _models(text: str) -> list[str]:
    ids = text.replace(",", " ").split()
    if not 0 < len(ids) <= MOST_MODELS or any(len(id_) > LONGEST_MODEL or not id_.isprintable() for id_ in ids):
        raise argparse.ArgumentTypeError(f"name 1 to {MOST_MODELS} models, by their ids in GET /v1/models")
    return ids


def _number(kind: type[int] | type[float], most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to {most:,}")
        return value

    return parse


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of a key; `make keys` shows them") from None


if __name__ == "__main__":
    sys.exit(main())
