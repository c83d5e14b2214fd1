"""The simulated engine: slots, a queue before them, and time. One event loop in a thread runs all of it."""

import asyncio
import os
import threading
import time
from collections import deque

import sim_faults

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
POLL_SECONDS = 0.15  # how often clients' cancels are looked for


class Sequences:
    """A request in the engine: `n` sequences that advance together."""

    __slots__ = (
        "arrived",
        "completions",
        "done",
        "due",
        "ended",
        "job",
        "length",
        "plan",
        "started",
        "stream",
        "timer",
    )

    def __init__(self, job, completions: list, plan, stream: bool) -> None:
        self.job = job  # what answers: send(), fail(), cancelled(), is_cancelled()
        self.completions = completions
        self.plan = plan
        self.stream = stream
        self.length = max(len(each.tokens) for each in completions)
        self.done = 0  # tokens already sent
        self.due = 0
        self.arrived = time.monotonic()
        self.started = 0.0
        self.timer = None
        self.ended = False

    @property
    def finished(self) -> bool:
        return self.done >= self.length

    @property
    def first_token_at(self) -> float:
        return self.started + self.plan.first

    @property
    def token_seconds(self) -> float:
        return self.plan.each

    def generated(self, now: float) -> int:
        """Tokens that exist by now."""
        if not self.started or self.plan.action == "hang":
            return 0
        elapsed = now - self.started - self.plan.first
        if elapsed < 0:
            return 0
        return min(self.length, 1 + int(elapsed / self.plan.each)) if self.plan.each else self.length


class Engine:
    def __init__(self, slots: int, metrics, process=None) -> None:
        self.slots = slots
        self._process = process
        self._metrics = metrics
        self.used = 0
        self.dead = False
        self.sickness = None
        self._waiting: deque[Sequences] = deque()
        self._running: set[Sequences] = set()
        self._arrived: deque[Sequences] = deque()
        self._random = 1
        self._admitting = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Sequences) -> None:
        """Hand over a request, from any thread."""
        self._arrived.append(request)
        if len(self._arrived) == 1:
            self._loop.call_soon_threadsafe(self._take)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self._process:
            self._process.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        poll = self._loop.create_task(self._poll())
        self._loop.run_forever()
        poll.cancel()
        self._loop.run_until_complete(asyncio.gather(poll, return_exceptions=True))
        self._loop.close()

    def _take(self) -> None:
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        self._admit()

    def _admit(self) -> None:
        if self._admitting:
            return
        self._admitting = True
        while self._waiting:
            need = min(len(self._waiting[0].completions), self.slots)
            if self.used + need > self.slots:
                break
            request = self._waiting.popleft()
            self.used += need
            self._running.add(request)
            self._begin(request)
        self._admitting = False

    def _begin(self, request: Sequences) -> None:
        request.started = self._loop.time()
        match request.plan.action:
            case "hang":
                return
            case "die-stub":
                sim_faults.end_process()
            case "kill-server":
                sim_faults.kill_server()
            case "engine-dead":
                self.dead = True
            case "engine-sick":
                self.sickness = request.plan.error
        if self.dead:
            self._fail_all()
            return
        error = self.sickness or request.plan.error
        if error is not None:
            self._end(request)
            request.job.fail(error)
            return
        self._schedule(request)

    def _schedule(self, request: Sequences) -> None:
        """Arrange for the next message: a few tokens when streaming, all of them when not."""
        size = request.length - request.done
        if request.stream:
            # A small congruential generator: the sizes only have to look uneven.
            self._random = (self._random * 1_103_515_245 + 12_345) & 0x7FFFFFFF
            size = min(size, 1 + (self._random >> 16) % request.plan.chunk)
        request.due = request.done + size
        when = request.started + request.plan.first + (request.due - 1) * request.plan.each
        if when > self._loop.time():
            request.timer = self._loop.call_at(when, self._step, request)
        elif request.due < request.length:
            request.timer = self._loop.call_soon(self._step, request)
        else:
            self._step(request)

    def _step(self, request: Sequences) -> None:
        before, request.done = request.done, request.due
        finished = request.done >= request.length
        self._metrics.stepped(request, before, self._loop.time())
        if finished:
            self._end(request)
        request.job.send(before, request.done, finished, request.stream)
        if finished:
            self._admit()
        else:
            self._schedule(request)

    def _end(self, request: Sequences) -> None:
        request.ended = True
        if request.timer is not None:
            request.timer.cancel()
        if request in self._running:
            self._running.remove(request)
            self.used -= min(len(request.completions), self.slots)
        else:
            self._waiting.remove(request)

    def _fail_all(self) -> None:
        for each in [*self._running, *self._waiting]:
            self._end(each)
            each.job.fail(DEAD)

    async def _poll(self) -> None:
        server = os.getppid()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if os.getppid() != server:
                # Triton leaves its stubs behind when it is killed.
                sim_faults.end_process()
            if self._process and not self._process.alive:
                self.dead = True
                self._fail_all()
            for number, request in enumerate([*self._running, *self._waiting]):
                if number % 64 == 63:
                    await asyncio.sleep(0)
                if not request.ended and request.job.is_cancelled():
                    generated = request.generated(self._loop.time())
                    self._end(request)
                    request.job.cancelled(request.done, generated, request.stream)
            self._admit()
            self._metrics.report(len(self._running), len(self._waiting))
