"""Whether a run was lost with its rented host, because the provider took that away or the controller ended it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from uuid import UUID

from app.engines.base import GONE_CODES, Disposition, EngineError
from app.errors import DatabaseUnavailable
from app.queue.hosts import HostStore

# A provider says only some seconds after the connection broke that it has taken the host.
VERDICT_SECONDS = 30.0
LOOK_SECONDS = 0.5
# What a run meets whose host goes.
CODES = GONE_CODES | {"server_stuck", "stream_cancelled", "server_error"}

HOST_LOST = EngineError(
    "host_lost",
    "The host that ran it was taken away by its provider or ended by the controller; it runs again elsewhere.",
    Disposition.WAIT,
)


class LostHosts:
    def __init__(self, store: HostStore) -> None:
        self._store = store

    async def instead_of(self, error: EngineError, host_id: UUID | None) -> EngineError:
        """HOST_LOST where the error comes of that, which spends no attempt; else the error.

        Waits for the controller's word; what the host itself failed of is the error.
        """
        if host_id is None or error.disposition is not Disposition.RETRY or error.code not in CODES:
            return error
        until = time.monotonic() + VERDICT_SECONDS
        while time.monotonic() < until:
            with suppress(DatabaseUnavailable):
                fate = await self._store.fate(host_id)
                if fate is None or fate["excused"]:
                    return HOST_LOST
                if fate["over"]:
                    return error
            await asyncio.sleep(LOOK_SECONDS)
        return error
