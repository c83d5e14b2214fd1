"""Asks an engine that is opened for one request."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from app.engines.base import Endpoint, EngineError, Request
from app.engines.registry import open_engine
from app.tasks.chunks import Accumulator
from tests.faulty_http import Behaviour, faulty_server


async def run(endpoint: Endpoint, asked: Request) -> Accumulator:
    engine = open_engine(endpoint)
    made = Accumulator()
    try:
        async with aclosing(engine.run(asked)) as chunks:
            async for chunk in chunks:
                made.add(chunk)
    finally:
        await engine.close()
    return made


async def fault(kind: str, behaviour: Behaviour, asked: Request, **endpoint: Any) -> EngineError:
    """What becomes of a request to a server that behaves so."""
    async with faulty_server(behaviour) as server:
        with pytest.raises(EngineError) as failed:
            await run(Endpoint(kind, server.url, **endpoint), asked)
    return failed.value
