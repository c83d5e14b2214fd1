"""Continuous batching: one thread that gives slots to requests and decodes for all of them, a step at a time."""

import os
import threading
import time
import traceback
from collections import deque

import sim_faults
from llama_sampling import ranked
from llama_text import Generation

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
POLL_SECONDS = 0.15  # how often an idle engine looks for its server, and for cancels of what waits
# Tokens in one step: a long prompt takes several, and who generates waits a fifth of a second for the next token.
STEP_TOKENS = 64


class Request:
    """One request in the engine."""

    __slots__ = (
        "arrived",
        "completions",
        "done",
        "first_token_at",
        "job",
        "last_token_at",
        "place",
        "prompt",
        "prompt_alternatives",
        "prompt_rows",
        "sampler",
        "sent",
        "slot",
        "stream",
        "token_seconds",
    )

    def __init__(
        self, job, prompt: list[int], generation: Generation, sampler, stream: bool, prompt_alternatives: int | None
    ) -> None:
        self.job = job  # what answers: send(), fail(), cancelled(), is_cancelled()
        self.prompt = prompt
        self.completions = [generation]
        self.sampler = sampler
        self.stream = stream
        # As many likeliest tokens are told at each place of the prompt; None where nothing of it is.
        self.prompt_alternatives = prompt_alternatives
        self.prompt_rows: list[dict] = []
        self.slot = -1
        self.place = 0  # tokens of prompt and answer that the cache holds
        self.done = 0  # tokens generated
        self.sent = 0  # of them, those already sent
        self.arrived = time.monotonic()
        self.first_token_at = self.last_token_at = self.token_seconds = 0.0

    @property
    def finished(self) -> bool:
        return self.completions[0].ended

    def add(self, token: int, ranked: dict | None) -> None:
        """Take the next token, just generated."""
        self.completions[0].add(token, ranked)
        self.done += 1
        now = time.monotonic()
        self.first_token_at = self.first_token_at or now
        self.token_seconds, self.last_token_at = now - self.last_token_at, now


class Engine:
    """Has `slots` sequences share the `cells` tokens of the model's cache; `context` is the most that one may have."""

    def __init__(self, model, slots: int, context: int, cells: int, metrics, log) -> None:
        self.dead = False
        self._metrics = metrics
        self._model = model
        self._log = log
        self._context = context
        self._free_cells = cells
        self._free_slots = list(range(slots))
        self._running: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._arrived: deque[Request] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._looked = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Hand over a request, from any thread."""
        self._arrived.append(request)
        self._wake.set()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._model.close()

    def _run(self) -> None:
        server = os.getppid()
        while not self._closing:
            if os.getppid() != server:
                # Triton leaves its stubs behind when it is killed.
                sim_faults.end_process()
            try:
                self._turn()
            except Exception:
                self.dead = True
                self._log(traceback.format_exc())

    def _turn(self) -> None:
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        if self.dead:
            self._fail_all()
        self._drop_cancelled()
        self._admit()
        self._metrics.report(len(self._running), len(self._waiting))
        if self._running:
            self._step()
        elif not self._arrived:
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _drop_cancelled(self) -> None:
        """Those that run are looked at in each step, those that wait now and then: there may be hundreds of them."""
        asked = list(self._running)
        if time.monotonic() - self._looked > POLL_SECONDS:
            self._looked = time.monotonic()
            asked += self._waiting
        for request in asked:
            if request.job.is_cancelled():
                self._end(request)
                request.job.cancelled(request.sent, request.done, request.stream)

    def _admit(self) -> None:
        """First come, first served: what is admitted has room in the cache for all it may generate."""
        while self._waiting and self._free_slots and self._need(self._waiting[0]) <= self._free_cells:
            request = self._waiting.popleft()
            self._free_cells -= self._need(request)
            request.slot = self._free_slots.pop()
            self._running.append(request)

    def _need(self, request: Request) -> int:
        return min(len(request.prompt) + request.completions[0].limit, self._context)

    def _step(self) -> None:
        rows: list[tuple[int, int, int, bool]] = []
        due: list[tuple[Request, int]] = []
        read: list[tuple[Request, int, int]] = []
        for request, count in self._shares():
            last = len(request.prompt) + request.done - 1
            for place in range(request.place, request.place + count):
                inside = request.prompt_alternatives is not None and place < len(request.prompt) - 1
                if inside:
                    read.append((request, request.prompt[place + 1], len(rows)))
                rows.append((self._token(request, place), place, request.slot, inside or place == last))
            request.place += count
            if request.place > last:
                due.append((request, len(rows) - 1))
        self._model.decode(rows)
        for request, token, row in read:
            request.prompt_rows.append(ranked(self._model.logits(row), token, request.prompt_alternatives))
        for request, row in due:
            self._advance(request, row)

    def _shares(self) -> list[tuple[Request, int]]:
        """Tokens of each request in the next step: one of those that generate, and of the prompts equal parts.

        A short prompt does not wait for the end of a long one.
        """
        shares = [(each, 1) for each in self._running if each.done]
        prompts = sorted((each for each in self._running if not each.done), key=_unread)
        room = STEP_TOKENS - len(shares)
        for number, request in enumerate(prompts):
            count = min(_unread(request), room // (len(prompts) - number))
            room -= count
            if count:
                shares.append((request, count))
        return shares

    def _token(self, request: Request, place: int) -> int:
        size = len(request.prompt)
        return request.prompt[place] if place < size else request.completions[0].tokens[place - size]

    def _advance(self, request: Request, row: int) -> None:
        try:
            token, ranked = request.sampler.choose(self._model.logits(row))
        except ValueError as error:
            self._end(request)
            request.job.fail(str(error))
            return
        request.add(token, ranked)
        self._metrics.stepped(request, request.done - 1, request.last_token_at)
        if request.finished:
            self._end(request)
        if request.finished or request.stream:
            before, request.sent = request.sent, request.done
            request.job.send(before, request.sent, request.finished, request.stream)

    def _end(self, request: Request) -> None:
        if request.slot < 0:
            self._waiting.remove(request)
            return
        self._running.remove(request)
        self._model.forget(request.slot)
        self._free_slots.append(request.slot)
        self._free_cells += self._need(request)

    def _fail_all(self) -> None:
        for request in [*self._running, *self._waiting]:
            self._end(request)
            request.job.fail(DEAD)


def _unread(request: Request) -> int:
    return len(request.prompt) - request.place
