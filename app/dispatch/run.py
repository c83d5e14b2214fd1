"""One attempt: a claimed result, run on one server, ends as a settlement or goes back into the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple
from uuid import UUID

from app.config import Settings
from app.dispatch.answers import answer_of, files_of
from app.dispatch.choices import STOP_SECONDS, Choices
from app.dispatch.lost_hosts import LostHosts
from app.dispatch.provenance import provenance_of
from app.engines.base import UNKNOWN, Disposition, EngineError, refusal
from app.fleet.fleet import Fleet
from app.fleet.lanes import Lane
from app.fleet.quarantine import TRIAL_SHORTEST_SECONDS, trial
from app.fleet.servers import ServerEntry
from app.prompts.templates import Templates
from app.queue.ticket import (
    CANCELLED,
    CANCELLED_MESSAGE,
    EXPIRED,
    EXPIRED_MESSAGE,
    Claim,
    Outcome,
    Release,
    Settlement,
    Status,
    backoff_seconds,
)
from app.tasks.chunks import Accumulator
from app.tasks.infer import INFER, Responses
from app.telemetry import logger

log = logger("run")

# What an engine says is logged up to here.
RAW_CHARS = 500
NO_SLOT_SECONDS = 0.1
WAIT_SECONDS = 1.0
ABORTED = "abort"
NOT_KEPT = " It was not streamed, so what the engine had generated is not kept: send it with stream to keep that."
SERVER_STUCK = EngineError(
    "server_stuck", "The server stopped answering while the generation ran.", Disposition.RETRY, server_fault=True
)


class Stop(Enum):
    """Why a run is ended from outside."""

    CANCEL = auto()
    EXPIRY = auto()
    LEASE_LOST = auto()
    DRAIN = auto()
    STUCK = auto()


@dataclass(eq=False)
class Run:
    """A claim this process holds, and the task that works on it."""

    claim: Claim
    task: asyncio.Task[None] | None = None
    choices: Choices | None = None
    stopped: Stop | None = None
    settling: bool = False
    # Whether somebody follows it, or its sender asked for a stream.
    streamed: bool = False
    # Of the server's price, what it costs.
    price_factor: float = 1.0
    answer: Accumulator = field(init=False)

    def __post_init__(self) -> None:
        if self.claim.task == INFER:
            self.answer = Responses()
        else:
            self.answer = Accumulator(self.claim.parameters.get("n") or 1)

    @property
    def lane(self) -> Lane | None:
        return self.choices.lane if self.choices else None

    @property
    def slots(self) -> int:
        """How many generations it has under way, or one that is about to start."""
        return self.choices.slots if self.choices else 1

    @property
    def size(self) -> int:
        """Bytes of its prompt and of its answer: what that may come to, or more where it already has."""
        return self.claim.prompt_bytes + max(self.claim.answer_bytes, self.answer.size)

    def forget(self) -> None:
        """Lets go of what refers back to it once it is over: the collector, which stops all others, need not look."""
        self.task = self.choices = None

    def stop(self, reason: Stop) -> None:
        """Ends the generation; the engine stops within half a second. The first reason counts."""
        if self.stopped is None and not self.settling and self.task is not None:
            self.stopped = reason
            if self.choices is not None:
                self.choices.stop()
                patience = STOP_SECONDS if self.choices.streaming else 0.0
                asyncio.get_running_loop().call_later(patience, self.task.cancel)


async def attempt(
    run: Run,
    fleet: Fleet,
    templates: Templates,
    settings: Settings,
    lost_hosts: LostHosts,
    spoke: Callable[[Run], None],
) -> Settlement | Release | None:
    """Runs one attempt to its end; None when the claim is no longer ours.

    `spoke` is called with each message of a run that somebody follows.
    """
    claim = run.claim
    if run.stopped is not None:
        return _after_stop(run, settings)
    if claim.cancel_requested:
        return _failed(run, Outcome.CANCELLED, CANCELLED, CANCELLED_MESSAGE, spent=False)
    if claim.expires_in is not None and claim.expires_in <= 0:
        return _failed(run, Outcome.EXPIRED, EXPIRED, EXPIRED_MESSAGE, spent=False)
    if claim.attempt > settings.max_attempts:
        code, message = claim.last_error or ("dispatcher_lost", "Each attempt was lost with its dispatcher.")
        return _failed(run, Outcome.FAILED, code, message, spent=False)

    lane = fleet.acquire(claim.model, claim.server)
    if lane is None:
        return _released(run, NO_SLOT_SECONDS)

    def said() -> None:
        if run.streamed:
            spoke(run)

    run.choices = Choices(claim, lane, fleet, settings, run.answer, said, lambda: run.streamed)
    expiry = None
    if claim.expires_in is not None:
        expiry = asyncio.get_running_loop().call_later(claim.expires_in, run.stop, Stop.EXPIRY)
    try:
        try:
            await run.choices.prepare(templates)
            await _generate(run.choices, claim, fleet)
        except EngineError as error:
            return _after_error(run, await lost_hosts.instead_of(error, host_of(run)), settings)
    except asyncio.CancelledError:
        if run.stopped is None:
            raise
        if run.stopped is Stop.STUCK:
            return _after_error(run, await lost_hosts.instead_of(SERVER_STUCK, host_of(run)), settings)
        return _after_stop(run, settings)
    finally:
        if expiry is not None:
            expiry.cancel()
    return _after_answer(run, settings)


async def _generate(choices: Choices, claim: Claim, fleet: Fleet) -> None:
    """Raises EngineError for what the engine or the server did not answer."""
    try:
        await choices.run()
    except EngineError as error:
        fleet.report(choices.lane, error)
        again = error.code == UNKNOWN and claim.last_error == (error.code, error.message)
        if again and await trial(choices.lane, TRIAL_SHORTEST_SECONDS) is None:
            log.warning("the engine fails on one request only", result=claim.id, raw=error.raw[:RAW_CHARS])
            raise refusal(error) from None
        raise


def _after_answer(run: Run, settings: Settings) -> Settlement | Release:
    if not run.answer.finished or ABORTED in run.answer.finish_reasons:
        error = EngineError("answer_incomplete", "The engine ended without finishing its answer.", Disposition.RETRY)
        return _after_error(run, error, settings)
    used = _used(run)
    return Settlement(
        id=run.claim.id,
        token=run.claim.token,
        status=Status.COMPLETED,
        outcome=Outcome.COMPLETED,
        server=server_of(run),
        answer=answer_of(run.answer, provenance_of(run.choices)),
        files=files_of(run.answer),
        size=run.answer.size,
        gpu_seconds=used.seconds,
        cost=used.cost,
        host_id=host_of(run),
    )


def _after_error(run: Run, error: EngineError, settings: Settings) -> Settlement | Release:
    log.info(
        "attempt failed",
        result=run.claim.id,
        attempt=run.claim.attempt,
        server=server_of(run),
        code=error.code,
        then=error.disposition.value,
        raw=error.raw[:RAW_CHARS],
    )
    if error.disposition is Disposition.WAIT:
        return _released(run, max(WAIT_SECONDS, error.retry_after or 0.0), error)
    if error.disposition is Disposition.RETRY and run.claim.attempt < settings.max_attempts:
        return _released(run, backoff_seconds(run.claim.attempt), error)
    message = error.message
    if error.disposition is Disposition.RETRY and run.claim.attempt > 1:
        message = f"{message} This was the last of {run.claim.attempt} attempts."
    return _failed(run, Outcome.FAILED, error.code, message)


def _after_stop(run: Run, settings: Settings) -> Settlement | Release | None:
    match run.stopped:
        case Stop.CANCEL:
            return _failed(run, Outcome.CANCELLED, CANCELLED, CANCELLED_MESSAGE + _lost(run), engine_stopped=True)
        case Stop.EXPIRY:
            return _failed(run, Outcome.EXPIRED, EXPIRED, EXPIRED_MESSAGE + _lost(run), engine_stopped=True)
        case Stop.STUCK:
            return _after_error(run, SERVER_STUCK, settings)
        case Stop.DRAIN:
            return _released(run, 0.0)
        case _:
            return None


def _lost(run: Run) -> str:
    return NOT_KEPT if run.choices and run.choices.whole and not run.answer.size else ""


def _failed(
    run: Run, outcome: Outcome, code: str, message: str, *, spent: bool = True, engine_stopped: bool = False
) -> Settlement:
    used = _used(run)
    return Settlement(
        id=run.claim.id,
        token=run.claim.token,
        status=Status.FAILED,
        outcome=outcome,
        server=server_of(run),
        answer=answer_of(run.answer, provenance_of(run.choices)),
        files=files_of(run.answer),
        size=run.answer.size,
        error_code=code,
        error_message=message,
        attempt_spent=spent,
        engine_stopped=engine_stopped,
        gpu_seconds=used.seconds,
        cost=used.cost,
        host_id=host_of(run),
    )


def _released(run: Run, delay: float, error: EngineError | None = None) -> Release:
    used = _used(run)
    return Release(
        id=run.claim.id,
        token=run.claim.token,
        outcome=Outcome.RETRIED,
        server=server_of(run),
        delay=delay,
        attempt_spent=error is not None and error.disposition is Disposition.RETRY,
        error_code=error.code if error else None,
        error_message=error.message if error else None,
        gpu_seconds=used.seconds,
        cost=used.cost,
        host_id=host_of(run),
        provenance=provenance_of(run.choices),
    )


class Used(NamedTuple):
    """Seconds of a server, and dollars where its price is known."""

    seconds: float = 0.0
    cost: float | None = None


def _used(run: Run) -> Used:
    """The run's shares of its server's time, which end here; none where the server had no part in it."""
    seconds = run.choices.used_seconds() if run.choices else None
    if run.lane is None or seconds is None:
        return Used()
    cost = _cost(run.lane.server.entry, run.answer, seconds)
    return Used(seconds, None if cost is None else cost * run.price_factor)


def _cost(server: ServerEntry, answer: Accumulator, seconds: float) -> float | None:
    """By the hour, by the token, or both; None where the server has no price."""
    parts = (
        (server.hourly_price, seconds / 3600),
        (server.prompt_token_price, (answer.prompt_tokens or 0) / 1e6),
        (server.completion_token_price, (answer.completion_tokens or 0) / 1e6),
    )
    known = [price * used for price, used in parts if price is not None]
    return sum(known) if known else None


def server_of(run: Run) -> str | None:
    return run.lane.server.url if run.lane else None


def host_of(run: Run) -> UUID | None:
    """The rented host it runs on."""
    return run.lane.server.host_id if run.lane else None
