"""The row in `servers` by which API and dispatchers use a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.db.engine import Database
from app.fleet.listing import ACTIVE, DRAINING, SAME, row_of
from app.fleet.servers import ServerEntry
from app.queue.leader import fenced
from app.queue.servers import ServerStore


class Serving:
    """Every method raises NotLeading once the token is stale."""

    def __init__(self, database: Database, token: int) -> None:
        self._database = database
        self._token = token
        self._store = ServerStore(database)

    async def at(self, host: Mapping[str, Any], address: str, concurrency: int) -> UUID:
        """The host serves at this address: adds its row, or changes the one it has."""
        entry = ServerEntry(url=address, name=host["label"], hourly_price=host["hourly_price"], concurrency=concurrency)
        fields = row_of(entry) | {"wanted": ACTIVE}
        now = await self._store.find(host["server_id"], host["label"])
        async with fenced(self._database, self._token) as connection:
            row = await (
                self._store.add(connection, fields)
                if now is None
                else self._store.change(connection, now["id"], fields)
            )
            if row is not None:
                await self._store.belongs(connection, row["id"], host["id"])
        if row is None:
            # Of a host that is gone, or of another tunnel.
            raise AddressTaken(address)
        id_: UUID = row["id"]
        return id_

    async def drain(self, server_id: UUID | None) -> None:
        """It gets nothing more, and finishes what it has."""
        await self._want(server_id, DRAINING)

    async def undrain(self, server_id: UUID | None) -> None:
        await self._want(server_id, ACTIVE)

    async def remove(self, server_id: UUID | None) -> None:
        if server_id is not None:
            async with fenced(self._database, self._token) as connection:
                await self._store.remove(connection, server_id)

    async def _want(self, server_id: UUID | None, wanted: str) -> None:
        row = None if server_id is None else await self._store.find(server_id)
        if row is not None and row["wanted"] != wanted:
            fields = {name: row[name] for name in SAME} | {"address": row["address"], "wanted": wanted}
            async with fenced(self._database, self._token) as connection:
                await self._store.change(connection, row["id"], fields)


class AddressTaken(Exception):
    """Another server has the address."""
