"""What every command has: settings, a migrated database, and errors that end as one line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from pydantic import ValidationError

from app.config import Settings, SettingsError, load_settings
from app.db.engine import Database, open_database
from app.errors import AppError
from app.services.health import Health

Work = Callable[[Database, Settings], Awaitable[None]]


def run(work: Work) -> int:
    """Runs `work` on a database that has been migrated; answers the exit status, 1 after an error on stderr."""
    try:
        return asyncio.run(_on_database(work))
    except (SettingsError, AppError) as error:
        print(error, file=sys.stderr)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        print(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}", file=sys.stderr)
    return 1


async def _on_database(work: Work) -> int:
    settings = load_settings()
    async with open_database(settings) as database:
        state = await Health(database).database()
        if not state.migrated:
            print(state.detail, file=sys.stderr)
            return 1
        await work(database, settings)
    return 0
