from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from app.config import Settings
from tests.service import Service, running_api, running_dispatcher
from tests.webhooks.receiver import Receiver, receiving


@pytest.fixture
def hook_settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(webhook_allow_private=True)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest_asyncio.fixture
async def hooked(hook_settings: Settings) -> AsyncIterator[Service]:
    """The API and a dispatcher that may deliver to this host."""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_api(hook_settings))
        await stack.enter_async_context(running_dispatcher(hook_settings))
        yield running


@pytest_asyncio.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()
