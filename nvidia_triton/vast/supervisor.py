"""Keeps one tunnel up until it is stopped or its instance is gone: `python -m nvidia_triton.vast.supervisor ID`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from logging.handlers import RotatingFileHandler
from typing import Any

from nvidia_triton.vast import instances, tunnel
from nvidia_triton.vast.context import Address, Context, Instance
from nvidia_triton.vast.control import Control
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.forward import is_free
from nvidia_triton.vast.link import hold
from nvidia_triton.vast.ssh import Connection
from nvidia_triton.vast.state import StateFailed
from nvidia_triton.vast.vast import VastClient
from nvidia_triton.vast.wiring import open_context

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
# The documented pause between two questions about an instance.
ASK_SECONDS = 2.0
# How often Vast has to say that there is no such instance before it is believed.
GONE_ANSWERS = 3
WATCH_SECONDS = 5.0
LOG_BYTES = 1_000_000

log = logging.getLogger("tunnel")


class Supervisor:
    """`resolve` asks Vast for the instance; it may raise TargetError, and the address known so far is used then."""

    def __init__(
        self, context: Context, record: dict[str, Any], resolve: Callable[[], Instance | None], stop: asyncio.Event
    ) -> None:
        self._context = context
        self._name = f"{tunnel.PREFIX}{record['contract']}"
        self._instance = _instance(record["instance"])
        self._ports: dict[int, int] = dict(zip(record["ports"], record["remote_ports"], strict=True))
        self._http_port, grpc_port, _ = self._ports
        self._url = f"127.0.0.1:{grpc_port}"
        self._resolve = resolve
        self._stop = stop
        self._next_question = time.monotonic() + ASK_SECONDS
        self._gone = 0
        # Tried in turn: the direct one, then the proxy.
        self._turn = 0
        self._was_up = False

    async def run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        try:
            while self._goes_on():
                if await self._connect():
                    pause, self._turn = FIRST_PAUSE_SECONDS, 0
                else:
                    self._turn += 1
                if not self._goes_on():
                    break
                await self._sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                if not await self._ask():
                    self._say("down", f"Vast knows no instance {self._instance.id} any more; the tunnel has ended.")
                    break
        finally:
            with contextlib.suppress(StateFailed):
                self._context.servers.remove(self._instance.name, self._url)

    async def _connect(self) -> bool:
        """One run of ssh, from its start to its end; whether the forwards stood."""
        if not self._instance.addresses:
            self._say("down", f"the instance has no address; its status is {self._instance.status or 'not known'!r}.")
            return False
        if taken := [port for port in self._ports if not is_free(port)]:
            self._say(
                "down",
                f"local port {taken[0]} is taken by another program: end that program, or `make stop-tunnels "
                f"CONTRACT_ID={self._instance.id}` and start the tunnel again on other ports.",
            )
            if not self._was_up:
                # Nobody knows these ports yet: whoever started us takes others.
                self._note(ports_taken=True)
                self._stop.set()
            return False
        address = self._instance.addresses[self._turn % len(self._instance.addresses)]
        connection = Connection(self._context, self._instance, address)
        stood, problem = await hold(
            connection, self._ports, self._stop, up=lambda: self._is_up(address), watch=self._watch
        )
        if not self._stop.is_set():
            self._say("down", problem)
        return stood

    async def _watch(self) -> None:
        """Logs when Triton stops answering behind a tunnel that stands, and when it answers again."""
        live = True
        while True:
            await self._sleep(WATCH_SECONDS)
            if not self._goes_on():
                return
            now = await asyncio.to_thread(_is_live, self._http_port)
            if now != live:
                live = now
                log.warning("Triton %s through the tunnel", "answers" if live else "does not answer")

    async def _ask(self) -> bool:
        """Looks the address up again; False when the instance is gone for good."""
        if time.monotonic() < self._next_question:
            return True
        question = asyncio.create_task(asyncio.to_thread(self._resolve))
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({question, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not question.done():
            return True
        try:
            found = question.result()
        except TargetError as problem:
            log.warning("the address is not known anew: %s", self._context.settings.redact(str(problem)))
            found = self._instance
        self._next_question = time.monotonic() + ASK_SECONDS
        if found is None:
            self._gone += 1
            return self._gone < GONE_ANSWERS
        self._gone = 0
        self._instance = found
        return True

    def _goes_on(self) -> bool:
        """Not where the state is gone: nobody could find this process any more, to stop it."""
        if not tunnel.is_ours(self._context.state, self._instance.id):
            self._stop.set()
        return not self._stop.is_set()

    def _is_up(self, address: Address) -> None:
        log.info("up: %s:%d, local ports %s", address.host, address.port, ", ".join(map(str, self._ports)))
        instance = self._instance
        with _tolerant():
            self._context.servers.put(self._url, instance.name, instance.dph_total)
        self._was_up = True
        self._note(up=True, problem="")

    def _say(self, what: str, reason: str) -> None:
        reason = self._context.settings.redact(reason)
        log.warning("%s: %s", what, reason)
        self._note(up=False, problem=reason)

    def _note(self, **fields: Any) -> None:
        if tunnel.is_ours(self._context.state, self._instance.id):
            with _tolerant():
                self._context.state.update(self._name, **fields)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()


@contextlib.contextmanager
def _tolerant() -> Iterator[None]:
    """A disk that is full is no reason to break a connection that stands."""
    try:
        yield
    except StateFailed as failure:
        log.warning("%s", failure)


def _is_live(http_port: int) -> bool:
    with Control(http_port) as control:
        return control.is_live()


def _instance(row: dict[str, Any]) -> Instance:
    addresses = tuple(Address(**address) for address in row["addresses"])
    return Instance(**row | {"addresses": addresses})


async def _run(context: Context, contract_id: int) -> None:
    name = f"{tunnel.PREFIX}{contract_id}"
    record = context.state.update(name, up=False)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    client: list[VastClient] = []

    def resolve() -> Instance | None:
        # Not before it is needed: without an API key the tunnel works as long as the address stays.
        if not client:
            client.append(VastClient(context.settings))
        return instances.look(client[0], contract_id)

    await Supervisor(context, record, resolve, stop).run()
    logging.shutdown()
    # A question to Vast may still be on its way, and its thread would be waited for.
    os._exit(0)


def main(arguments: list[str]) -> None:
    contract_id = int(arguments[0])
    context = open_context(needs_definition=False)
    handler = RotatingFileHandler(tunnel.log_file(context.state, contract_id), maxBytes=LOG_BYTES, backupCount=1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tunnel.held(context.state, contract_id) as first:
        if not first:
            return
        try:
            asyncio.run(_run(context, contract_id))
        except Exception:
            log.exception("the tunnel ended unexpectedly")
            raise


if __name__ == "__main__":
    main(sys.argv[1:])
