"""The secret that signs an owner's webhooks: `python -m app.webhooks [OWNER] [--rotate]`."""

from __future__ import annotations

import argparse
import asyncio
import sys

from app.config import SettingsError, load_settings
from app.db.engine import open_database
from app.errors import AppError
from app.queue.deliveries import DeliveryStore
from app.services.health import Health
from app.services.webhooks import owner_named, rotate, secret_of

WITHOUT_KEYS = "local"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.webhooks", description=__doc__)
    parser.add_argument("owner", nargs="?", default=WITHOUT_KEYS, help="as `make keys` shows it; else without a key")
    parser.add_argument("--rotate", action="store_true", help="make a new one; the old one signs too for a day")
    arguments = parser.parse_args()
    try:
        return asyncio.run(_run(arguments.owner, arguments.rotate))
    except (SettingsError, AppError) as error:
        print(error, file=sys.stderr)
        return 1


async def _run(owner: str, new: bool) -> int:
    async with open_database(load_settings()) as database:
        state = await Health(database).database()
        if not state.migrated:
            print(state.detail, file=sys.stderr)
            return 1
        store = DeliveryStore(database)
        owner_id = await owner_named(store, owner)
        if new:
            secret, until = await rotate(store, owner_id)
            print(f"The secret before this one signs too until {until:%Y-%m-%d %H:%M} UTC.", file=sys.stderr)
        else:
            secret = await secret_of(store, owner_id)
    print(secret)
    return 0


if __name__ == "__main__":
    sys.exit(main())
