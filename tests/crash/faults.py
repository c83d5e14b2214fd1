"""Carries a schedule out on a stack, and notes when each blow fell and when it was made good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

from tests.crash.schedule import Act, Blow, Target
from tests.crash.stack import Service, Stack

WATCH_SECONDS = 0.5
# How long the service may take to load a dead model again, with its dispatchers and Postgres up. The dispatcher that
# knows of the death may be killed; the others find out by silence: 4 s until runs are given up, 30 s for a trial, 34 s
# for another one, during which the process takes no request, then 10 s until the model is loaded beside its remains.
RELOAD_SECONDS = 120.0
# Whose end takes along what is known of a death.
FINDERS = (Target.DISPATCHER, Target.POSTGRES)


@dataclass
class Struck:
    """A blow that fell; times are those of the wall clock, in seconds, as Postgres has them too."""

    blow: Blow
    victim: str
    hit: float
    healed: float = 0.0
    note: str = ""


class Faults:
    """`said` is called with one line for each thing that happens."""

    def __init__(self, stack: Stack, said: Callable[[str], None]) -> None:
        self.struck: list[Struck] = []
        self.deaths: list[str] = []
        self.triton_deaths = 0
        self._stack = stack
        self._said = said
        # Held by whoever hits or starts the server.
        self._triton = asyncio.Lock()

    async def run(self, lanes: list[list[Blow]]) -> None:
        """Returns when the last blow is made good."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for lane in lanes:
                tasks.create_task(self._lane(lane, started))

    async def _lane(self, blows: list[Blow], started: float) -> None:
        for blow in blows:
            await asyncio.sleep(started + blow.at - time.monotonic())
            struck = Struck(blow, str(blow.target), time.time())
            self.struck.append(struck)
            match blow.target:
                case Target.API:
                    await self._hit_service(self._stack.api, struck)
                case Target.DISPATCHER:
                    await self._hit_service(self._stack.dispatchers[blow.index], struck)
                case Target.TRITON | Target.STUB:
                    async with self._triton:
                        await self._revive_triton()
                        await (self._hit_triton(struck) if blow.target is Target.TRITON else self._hit_stub(struck))
                case Target.LLAMA:
                    await self._hit_llama(struck)
                case _:
                    await self._hit_postgres(struck)
            self._said(f"{blow.kind} made good after {time.time() - struck.hit:.2f} s")
            # A reload takes as long as it takes: what follows in the lane keeps its distance.
            started += max(0.0, time.monotonic() - (started + blow.at + blow.hold))

    def _tell(self, struck: Struck) -> None:
        struck.hit = time.time()
        note = f" ({struck.note})" if struck.note else ""
        self._said(f"{struck.blow.kind}: {struck.victim}, for {struck.blow.hold:.2f} s{note}")

    async def _hit_service(self, service: Service, struck: Struck) -> None:
        struck.victim = service.label
        if struck.blow.act is Act.KILL:
            service.kill()
            self._tell(struck)
            await asyncio.sleep(struck.blow.hold)
            struck.healed = time.time()
            service.start()
        else:
            service.freeze()
            self._tell(struck)
            await asyncio.sleep(struck.blow.hold)
            struck.healed = time.time()
            service.thaw()

    async def _hit_triton(self, struck: Struck) -> None:
        triton = self._stack.triton
        struck.victim = f"pid {triton.pid}"
        if struck.blow.act is Act.KILL:
            await asyncio.to_thread(triton.kill)
            self._tell(struck)
            await asyncio.sleep(struck.blow.hold)
            struck.healed = time.time()
            await self._stack.start_triton()
        else:
            triton.freeze()
            self._tell(struck)
            await asyncio.sleep(struck.blow.hold)
            struck.healed = time.time()
            triton.thaw()

    async def _hit_stub(self, struck: Struck) -> None:
        stubs = self._stack.stubs
        stub = stubs[int(struck.blow.at * 1000) % len(stubs)]
        struck.victim = f"pid {stub.pid}"
        if struck.blow.act is Act.KILL:
            before = {each.pid for each in stubs}
            stub.kill()
            struck.note = "until the service loads the model again"
            self._tell(struck)
            # The server makes no new stub and goes on saying that it is ready; the service has to load the model again.
            if not await self._new_stub(before):
                self.deaths.append(f"the model of {struck.victim} was not loaded again within {RELOAD_SECONDS:g} s")
                await asyncio.to_thread(self._stack.triton.kill)
                await self._stack.start_triton()
            struck.healed = time.time()
        else:
            stub.suspend()
            self._tell(struck)
            await asyncio.sleep(struck.blow.hold)
            struck.healed = time.time()
            stub.resume()

    async def _hit_llama(self, struck: Struck) -> None:
        llama = self._stack.llama
        assert llama is not None
        struck.victim = llama.url
        if struck.blow.act is Act.KILL:
            await asyncio.to_thread(llama.kill)
            self._tell(struck)
            await asyncio.sleep(struck.blow.hold)
            struck.healed = time.time()
            await asyncio.to_thread(llama.start)
        else:
            llama.freeze()
            self._tell(struck)
            await asyncio.sleep(struck.blow.hold)
            struck.healed = time.time()
            llama.thaw()

    async def _new_stub(self, before: set[int]) -> bool:
        """Whether one comes in time; a server that dies meanwhile is started by `look_after`, with stubs of its own."""
        undisturbed = time.time()
        while time.time() < undisturbed + RELOAD_SECONDS:
            await asyncio.sleep(WATCH_SECONDS)
            ended = [each.healed or time.time() for each in self.struck if each.blow.target in FINDERS]
            undisturbed = max([undisturbed, *ended])
            if not self._stack.triton.running:
                await self._revive_triton()
            if any(each.pid not in before for each in self._stack.stubs):
                return True
        return False

    async def _hit_postgres(self, struck: Struck) -> None:
        postgres = self._stack.postgres
        struck.victim = f"pid {postgres.pid}"
        match struck.blow.act:
            case Act.KILL | Act.RESTART:
                end = postgres.kill if struck.blow.act is Act.KILL else postgres.stop
                self._tell(struck)
                await asyncio.to_thread(end)
                await asyncio.sleep(struck.blow.hold)
                struck.healed = time.time()
                await self._stack.start_postgres()
            case Act.FREEZE:
                self._stack.freeze_postgres()
                self._tell(struck)
                await asyncio.sleep(struck.blow.hold)
                struck.healed = time.time()
                self._stack.thaw_postgres()
            case _:
                try:
                    struck.note = f"{await self._stack.cut_listeners()} connections"
                except (OSError, TimeoutError, asyncpg.PostgresError) as error:
                    struck.note = f"not carried out: {type(error).__name__}"
                self._tell(struck)
                struck.healed = time.time()

    async def look_after(self) -> None:
        """Starts again whatever ends without being killed, until cancelled; for a service that is a defect."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for service in self._stack.services:
                if how := service.ended_by_itself():
                    self.deaths.append(f"{service.name} ended by itself: {how}")
                    self._said(self.deaths[-1])
                    service.start()
            if not self._triton.locked():
                async with self._triton:
                    await self._revive_triton()

    async def _revive_triton(self) -> None:
        if self._stack.triton.running:
            return
        # A stub frozen for some seconds does this to it: the server gives up on a lock they share.
        self.triton_deaths += 1
        self._said("tritonserver ended by itself")
        # Only cleans up: its stubs outlive it.
        await asyncio.to_thread(self._stack.triton.kill)
        await self._stack.start_triton()
