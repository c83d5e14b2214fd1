"""The texts of one ticket: each choice is a generation of its own, with n = 1.

Triton's vLLM backend mixes the texts of a request with n > 1 and loses some, and other engines know no n at all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from app.background import ended
from app.config import Settings
from app.dispatch.asked import Asked, asked_of
from app.dispatch.speed import Speed
from app.dispatch.traced import generation_span
from app.engines.base import Disposition, EngineError, Request
from app.fleet.fleet import Fleet
from app.fleet.lanes import Lane
from app.fleet.shares import Share
from app.prompts.templates import Templates
from app.queue.ticket import Claim
from app.tasks.chunks import Accumulator
from app.tasks.generate import GENERATE
from app.tasks.infer import INFER

SEEDS = 2**63
# A stop waits this long for the next message.
STOP_SECONDS = 0.3
# What may come to more than this is streamed in any case: a message has a limit, and so has what is read at once.
MAX_WHOLE_BYTES = 16 * 1024 * 1024


class Choices:
    """The generations of one claim on one lane, as many at once as there are slots.

    A ticket starts with one slot and keeps it until its last choice has started, so it never waits for another ticket.
    Its other choices run in slots that no ticket of the queue wants: `Fleet.share_out` hands them out, one choice each.
    """

    def __init__(
        self,
        claim: Claim,
        lane: Lane,
        fleet: Fleet,
        settings: Settings,
        answer: Accumulator,
        spoke: Callable[[], None],
        followed: Callable[[], bool],
    ) -> None:
        self.lane = lane
        self._claim = claim
        # Which model it is there now, and what is asked of it first.
        self.model = lane.server.models.get(claim.model)
        self.first: Request | None = None
        self._fleet = fleet
        self._settings = settings
        self._answer = answer
        self._spoke = spoke
        self._followed = followed
        # Of its generations under way, those that show how they go on; and whether any was asked for its answer whole.
        self._streams = 0
        self.whole = False
        self._asked = Asked(claim.prompt.content or "")
        self._left = deque(range(answer.choices))
        self._shares: list[Share] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._over = asyncio.Event()
        self._stopping = False

    @property
    def slots(self) -> int:
        """How many slots it holds."""
        return max(1, len(self._tasks))

    @property
    def estimated(self) -> bool:
        """Whether the counts of tokens are ours."""
        return self._answer.estimated

    @property
    def streaming(self) -> bool:
        """Whether another message may come before the last."""
        return self._streams > 0

    def used_seconds(self) -> float | None:
        """Its shares of the server's time, which end here; None where the server had no part in it."""
        return sum(share.end() for share in self._shares) if self._shares else None

    async def prepare(self, templates: Templates) -> None:
        """Makes a prompt of a chat where the engine takes prompts; where that fails, the slot is given back.

        Raises:
            EngineError: the model has no template here, or one that does not take this chat.
        """
        engine = self.lane.server.engine
        try:
            if not engine.takes(self._claim.task):
                raise EngineError(
                    "not_supported_by_model",
                    f"A server of the kind {engine.kind} takes no ticket of the task {self._claim.task}.",
                    Disposition.FINAL,
                )
            self._asked = await asked_of(self._claim, engine.takes_messages, templates)
            if self._asked.images and not engine.takes_images:
                raise EngineError(
                    "not_supported_by_model", f"A server of the kind {engine.kind} takes no images.", Disposition.FINAL
                )
        except BaseException:
            self._fleet.release(self.lane)
            raise

    async def run(self) -> None:
        """Generates every choice; the slot of the lane that the caller took is given back here.

        Raises:
            EngineError: of the first choice that failed; the others are stopped.
            CancelledError: it was stopped, or cancelled.
        """
        if self._answer.choices == 1:
            try:
                await self._generate(self._next())
            finally:
                self._fleet.release(self.lane)
            return
        try:
            self._start(keep=True)
            self._fleet.wait_for_slots(self.lane, self._start)
            await self._over.wait()
        finally:
            self._start_no_more()
            await ended(self._tasks)
        if self._error is not None:
            raise self._error
        if self._stopping and not self._answer.finished:
            raise asyncio.CancelledError

    def stop(self) -> None:
        """Ends each generation right after its next message, or lets it finish where it nearly has.

        A stream that is cancelled just when its last message is sent keeps Triton from unloading the model (see its
        connection.py), and a cancel is least likely to meet the last message when another one has just come.
        """
        self._stopping = True
        self._start_no_more()

    def _start(self, *, keep: bool = False) -> bool:
        """Starts the next choice in a slot taken for it, which is given back afterwards; returns whether more wait.

        With `keep`, the slot is used for further choices while some are left.
        """
        task = asyncio.create_task(self._work(self._next(), keep=keep))
        self._tasks.add(task)
        # Not in the task itself: one that is cancelled before its first step never runs.
        task.add_done_callback(self._ended)
        return bool(self._left)

    def _next(self) -> int:
        choice = self._left.popleft()
        if not self._left:
            self._fleet.stop_waiting(self.lane, self._start)
        return choice

    def _start_no_more(self) -> None:
        self._left.clear()
        self._fleet.stop_waiting(self.lane, self._start)

    async def _work(self, choice: int, *, keep: bool) -> None:
        await self._generate(choice)
        while keep and self._left:
            await self._generate(self._next())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and self._error is None:
            self._error = error
            self._start_no_more()
        if self._error is not None or not (self._tasks or self._left):
            self._over.set()
        self._fleet.release(self.lane)

    async def _generate(self, choice: int) -> None:
        claim = self._claim
        request_id = str(claim.id) if self._answer.choices == 1 else f"{claim.id}-{choice}"
        pace = _Pace(claim.parameters.get("max_tokens"))
        speed = Speed(claim.model)
        stream = self._shall_stream()
        share = self.lane.server.shares.join()
        self._shares.append(share)
        timeouts = self.lane.server.entry.timeouts
        self._streams += stream
        self.lane.streams += stream
        self.whole |= not stream
        try:
            request = Request(
                claim.model,
                self._asked.prompt,
                parameters_of(claim.parameters, choice),
                request_id,
                idle_timeout=timeouts.between_tokens or self._settings.idle_timeout_seconds,
                run_timeout=timeouts.total or self._settings.run_timeout_seconds,
                messages=self._asked.messages,
                asked=self._asked.request,
                inputs=self._asked.inputs,
                stream=stream,
                images=self._asked.images,
            )
            if self.first is None:
                self.first = request
            with generation_span(claim.model, self.lane.server.url, request.parameters, request.task):
                async with aclosing(self.lane.server.engine.run(request)) as chunks:
                    async for chunk in chunks:
                        tokens = sum(chunk.completion_tokens)
                        self.lane.moved()
                        speed.add(tokens, final=chunk.final)
                        if self._answer.size + chunk.size > self._settings.max_answer_bytes:
                            raise _too_large(self._settings.max_answer_bytes, request.task)
                        self._answer.add(chunk, choice)
                        if not chunk.final or self._answer.choices > 1:
                            # The last words of an answer come with its settle.
                            self._spoke()
                        pace.add(tokens)
                        if self._stopping and not chunk.final and pace.seconds_left() > STOP_SECONDS / 2:
                            raise asyncio.CancelledError
        except EngineError as error:
            if error.disposition is Disposition.WAIT:
                self._shares.remove(share)
            raise
        finally:
            share.end()
            self._streams -= stream
            self.lane.streams -= stream

    def _shall_stream(self) -> bool:
        """A message for each token costs many times an answer that comes whole, so somebody has to want it."""
        return (
            self._claim.task != GENERATE
            or not self.lane.server.engine.answers_whole
            or self._followed()
            or self._claim.answer_bytes > MAX_WHOLE_BYTES
            or self.lane.needs_sign(self._fleet.concurrency_of(self.lane.server))
        )


def _too_large(most: int, task: str) -> EngineError:
    less = "a smaller output" if task == INFER else "less with max_tokens, logprobs or n"
    return EngineError(
        "answer_too_large",
        f"The answer came to more than {most:,} bytes, which is all that MAX_ANSWER_BYTES allows: ask for {less}.",
        Disposition.FINAL,
    )


class _Pace:
    """How long a generation will go on if it takes all the tokens it may."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._tokens = 0
        self._started = time.monotonic()

    def add(self, tokens: int) -> None:
        if not self._tokens:
            self._started = time.monotonic()
            tokens = min(tokens, 1)
        self._tokens += tokens

    def seconds_left(self) -> float:
        if self._most is None or self._tokens < 2:
            return float("inf")
        return (self._most - self._tokens) * (time.monotonic() - self._started) / (self._tokens - 1)


def parameters_of(parameters: dict[str, Any], choice: int) -> dict[str, Any]:
    """What the engine is asked for one choice: no `n`, and a seed of its own where the ticket has one."""
    asked = {name: value for name, value in parameters.items() if name != "n"}
    seed = asked.get("seed")
    if choice and seed is not None:
        asked["seed"] = _seed_of(seed, choice)
    return asked


def _seed_of(seed: int, choice: int) -> int:
    if seed == -1:
        # To vLLM this means no seed.
        return seed
    if seed >= 0:
        return (seed + choice) % SEEDS
    # Downwards, so that none of them becomes -1.
    return -((-seed - 2 + choice) % (SEEDS - 1)) - 2
