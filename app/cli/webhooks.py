"""The secret that signs an owner's webhooks: `python -m app.cli.webhooks [OWNER] [--rotate]`."""

from __future__ import annotations

import argparse
import sys

from app.cli.command import run
from app.config import Settings
from app.db.engine import Database
from app.queue.deliveries import DeliveryStore
from app.services.webhooks import owner_named, rotate, secret_of

WITHOUT_KEYS = "local"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.cli.webhooks", description=__doc__)
    parser.add_argument("owner", nargs="?", default=WITHOUT_KEYS, help="as `make keys` shows it; else without a key")
    parser.add_argument("--rotate", action="store_true", help="make a new one; the old one signs too for a day")
    arguments = parser.parse_args()

    async def work(database: Database, settings: Settings) -> None:
        store = DeliveryStore(database)
        owner_id = await owner_named(store, arguments.owner)
        if arguments.rotate:
            secret, until = await rotate(store, owner_id)
            print(f"The secret before this one signs too until {until:%Y-%m-%d %H:%M} UTC.", file=sys.stderr)
        else:
            secret = await secret_of(store, owner_id)
        print(secret)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
