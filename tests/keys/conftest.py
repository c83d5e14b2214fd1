"""An API that needs keys, and keys for it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from app.config import Settings
from app.db.engine import Database
from app.queue.audit import Actor
from app.services.callers import Scope
from app.services.keys import Keys, NewKey
from tests.service import Service, running_api

MakeKey = Callable[..., Awaitable[str]]


@pytest.fixture
def make_key(database: Database) -> MakeKey:
    """Makes an API key and returns it; all scopes but admin."""

    async def make(name: str = "alice", **fields: Any) -> str:
        _, key = await Keys(database).create(NewKey(name, **fields), Actor(None, "tests"))
        return key

    return make


@pytest.fixture
async def admin(make_key: MakeKey) -> str:
    return await make_key("root", scopes=tuple(Scope))


@pytest_asyncio.fixture
async def guarded(make_settings: Callable[..., Settings]) -> AsyncIterator[Service]:
    """The API alone, with keys required."""
    async with running_api(make_settings(auth_required=True)) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
