"""A host in service: its tunnel, its row among the servers, and whether it still answers."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

from app.capacity.listings import Listing
from app.capacity.record import GONE_ANSWERS, PAUSE_SECONDS, Failed, HostRecord, stopped, vanished
from app.capacity.serving import Serving
from nvidia_triton.providers.base import Address, DeployFailed, Tunnel

# So long Triton may not answer behind its tunnel.
UNWELL_SECONDS = 60.0
LOOK_SECONDS = 2.0
TUNNEL_TRIES = 3


class HostService:
    """As a context manager, it closes the tunnel at the end and leaves the host as it is."""

    def __init__(self, host: HostRecord, serving: Serving) -> None:
        self._host = host
        self._serving = serving
        self._open = AsyncExitStack()
        self._tunnel: Tunnel | None = None

    async def __aenter__(self) -> HostService:
        await self._open.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._open.__aexit__(*raised)

    async def begin(self, address: Address) -> None:
        """It is ready as soon as its tunnel stands; raises Failed where none does."""
        await self._open_tunnel(address)
        await self._take_into_service()

    async def end(self) -> None:
        """It serves no more, whatever runs there."""
        await self._close_tunnel()
        await self._serving.remove(self._host.row["server_id"])

    async def undrain(self) -> None:
        await self._serving.undrain(self._host.row["server_id"])

    async def _take_into_service(self) -> None:
        assert self._tunnel is not None
        address = f"{self._host.means.advertised}:{self._tunnel.grpc_port}"
        server_id = await self._serving.at(self._host.row, address, self._host.means.slots)
        if self._host.row["state"] == "draining":
            await self._serving.drain(server_id)
            await self._host.writes.serve_at(self._host.id, server_id, address)
        elif self._host.row["state"] == "ready":
            await self._host.writes.serve_at(self._host.id, server_id, address)
        else:
            await self._host.move("ready", server_id=server_id, address=address)
        self._host.row |= {"server_id": server_id, "address": address}

    async def serve(self) -> None:
        if self._tunnel is None:
            await self.begin(await self._host.running_at())
        await self.until_gone()

    async def until_gone(self) -> None:
        """Raises Gone or Failed."""
        well = time.monotonic()
        seen = self._host.means.listings.latest
        missing = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            latest = self._host.means.listings.latest
            if latest is not None and latest is not seen:
                seen = latest
                missing = 0 if self._host.listed_in(latest) else missing + 1
                if missing >= GONE_ANSWERS:
                    raise vanished()
                if missing == 0:
                    self._require_running(latest)
            if self._tunnel is None or await self._tunnel.healthy():
                well = time.monotonic()
            elif time.monotonic() - well > UNWELL_SECONDS:
                problem = self._tunnel.problem or "the tunnel stands, and Triton behind it is silent"
                raise Failed(f"It has not answered for {UNWELL_SECONDS:.0f} s: {problem}")

    def _require_running(self, listing: Listing) -> None:
        rented = listing.hosts[self._host.row["provider_id"]]
        if rented.state != "running":
            raise stopped(rented)
        if rented.address is not None and self._tunnel is not None:
            self._tunnel.address = rented.address

    async def drain(self) -> None:
        """Until no live claim names it."""
        if self._host.row["server_id"] is not None:
            await self._serving.drain(self._host.row["server_id"])
            if self._tunnel is None:
                # Those that run there are cut off already; what is left of their claims is waited for.
                with suppress(DeployFailed, Failed):
                    await self.begin(await self._host.running_at())
            # A dispatcher that has not heard of it yet may take one more ticket for it.
            await asyncio.sleep(PAUSE_SECONDS)
            while await self._host.store.claims(self._host.row["address"]):  # noqa: ASYNC110 - other processes end them
                await asyncio.sleep(PAUSE_SECONDS)
        await self._host.move("destroying", "It is drained.")

    async def _open_tunnel(self, address: Address) -> None:
        for attempt in range(1, TUNNEL_TRIES + 1):
            tunnel = self._host.means.tunnel(address)
            try:
                await tunnel.start()
            except DeployFailed as error:
                if attempt == TUNNEL_TRIES:
                    raise Failed(f"No tunnel to it stands: {error}") from None
                continue
            self._tunnel = tunnel
            self._open.push_async_callback(self._close_tunnel)
            return

    async def _close_tunnel(self) -> None:
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            await tunnel.stop()
