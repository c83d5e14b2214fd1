"""States of a result and the rules between them: pure, no I/O."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID


class Status(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        return self is not Status.PENDING


class Phase(StrEnum):
    """Finer grain of `pending`."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"


class Outcome(StrEnum):
    """How one attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    RETRIED = "retried"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LEASE_LOST = "lease_lost"


CANCELLED = "cancelled"
EXPIRED = "expired"
CANCELLED_MESSAGE = "The result was cancelled on request."
EXPIRED_MESSAGE = "The result was not finished before its expires_at; send the context again to retry."

PRIORITY_LOWEST, PRIORITY_HIGHEST = -100, 100
BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_LONGEST_SECONDS = 60.0


def phase_of(status: Status, *, claimed: bool, cancel_requested: bool) -> Phase | None:
    """The phase of a result, None once it is final."""
    if status.final:
        return None
    if cancel_requested:
        return Phase.CANCELLING
    return Phase.RUNNING if claimed else Phase.QUEUED


def rank_of(created_at: datetime, priority: int, ageing_seconds: float) -> datetime:
    """The place in the order of service: the earliest rank goes first.

    A step of priority is worth `ageing_seconds` of waiting, so nothing starves, and equal
    priorities are served in order of arrival.
    """
    return created_at - timedelta(seconds=priority * ageing_seconds)


def backoff_seconds(attempt: int, draw: float | None = None) -> float:
    """Seconds before the try after `attempt`: doubling, capped, with full jitter in the upper half."""
    longest = min(BACKOFF_LONGEST_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** (attempt - 1))
    return longest * (0.5 + 0.5 * (random.random() if draw is None else draw))  # noqa: S311 - jitter


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's Idempotency-Key and the digest of what it asked for with it."""

    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Submission:
    """A ticket about to be stored."""

    id: UUID
    context_id: UUID
    model: str
    parameters: dict[str, Any]
    priority: int
    rank: datetime
    created_at: datetime
    expires_at: datetime | None = None
    client_reference: str | None = None
    retry_of: UUID | None = None
    idempotency: Idempotency | None = None
    owner_id: int = 0
    key_id: UUID | None = None
    kind: str | None = None
    request: dict[str, Any] | None = None
    streamed: bool = False
    webhook: dict[str, Any] | None = None
    # A prompt to store with the ticket, under `context_id`.
    prompt: "Prompt | None" = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine gets, and the chat it was made from."""

    content: str
    messages: list[dict[str, Any]] | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt to run a result, held until its lease ends; `token` fences it, `server` is where it should run."""

    id: UUID
    token: UUID
    model: str
    server: str
    prompt: str
    parameters: dict[str, Any]
    attempt: int
    expires_in: float | None
    cancel_requested: bool
    last_error: tuple[str, str] | None
    owner_id: int = 0
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class Claims:
    """What one statement claimed; `raced` when another dispatcher was quicker with some, so that more may be there."""

    claims: list[Claim]
    raced: bool


@dataclass(frozen=True, slots=True)
class Generated:
    """What an engine produced: one text per choice, token counts over all of them; `size` in bytes, as it came."""

    texts: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    logprobs: list[list[dict[str, Any]] | None] = field(default_factory=list)
    cumulative_logprobs: list[float | None] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Settlement:
    """The final status of a claimed result."""

    id: UUID
    token: UUID
    status: Status
    outcome: Outcome
    server: str | None
    generated: Generated
    error_code: str | None = None
    error_message: str | None = None
    attempt_spent: bool = True
    engine_stopped: bool = False
    gpu_seconds: float = 0.0
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """A claimed result that goes back into the queue after `delay` seconds."""

    id: UUID
    token: UUID
    outcome: Outcome
    server: str | None
    delay: float
    attempt_spent: bool
    error_code: str | None = None
    error_message: str | None = None
    gpu_seconds: float = 0.0
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What a renewal tells of a claim that is still ours."""

    cancel_requested: bool
    expired: bool
    streamed: bool = False
