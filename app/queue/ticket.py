"""States of a result and the rules between them: pure, no I/O."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.db.tables.contexts import Prompt
from app.db.tables.results import ClaimedColumns, SettledColumns, SubmittedColumns
from app.tasks.outputs import OutputFile


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
# The service tier of requests that yield to the rest, at the priority that the lines of batches have.
FLEX, FLEX_PRIORITY = "flex", -50
BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_LONGEST_SECONDS = 60.0


def phase_of(status: Status, *, claimed: bool, cancel_requested: bool) -> Phase | None:
    """The phase of a result, None once it is final."""
    if status.final:
        return None
    if cancel_requested:
        return Phase.CANCELLING
    return Phase.RUNNING if claimed else Phase.QUEUED


def rank_of(created_at: datetime, priority: int, ageing_seconds: float, expires_at: datetime | None = None) -> datetime:
    """The place in the order of service: the earliest rank goes first.

    A step of priority is worth `ageing_seconds` of waiting, so nothing starves, and equal
    priorities are served in order of arrival. A ticket that expires sooner than `ageing_seconds` after its arrival goes
    earlier by what is missing, so by a step of priority at most: each is due `ageing_seconds` after its arrival or when
    it expires, whichever is sooner, and the one that is due first goes first.
    """
    ageing = timedelta(seconds=ageing_seconds)
    arrival = created_at if expires_at is None else min(created_at, expires_at - ageing)
    return arrival - priority * ageing


def backoff_seconds(attempt: int, draw: float | None = None) -> float:
    """Seconds before the try after `attempt`: doubling, capped, with full jitter in the upper half."""
    longest = min(BACKOFF_LONGEST_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** (attempt - 1))
    return longest * (0.5 + 0.5 * (random.random() if draw is None else draw))  # noqa: S311 - jitter


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's Idempotency-Key and the digest of what it asked for with it."""

    key: str
    fingerprint: bytes


@dataclass(slots=True, kw_only=True)
class Submission(SubmittedColumns):
    """A ticket about to be stored."""

    idempotency: Idempotency | None = None
    # A prompt to store with the ticket, under `context_id`.
    prompt: Prompt | None = None


@dataclass(slots=True, kw_only=True)
class Claim(ClaimedColumns):
    """One attempt to run a result, held until its lease ends; `token` fences it, `server` is where it should run.

    `slot` is the number of its slot there, None where they are not counted.
    """

    token: UUID
    server: str
    # Without its metadata.
    prompt: Prompt
    attempt: int
    expires_in: float | None = None
    cancel_requested: bool = False
    last_error: tuple[str, str] | None = None
    # The prompt with its parameters, as it is stored; and what the answer may come to.
    prompt_bytes: int = 0
    answer_bytes: int = 0
    # How long it waited since the submit; None where it was claimed before.
    queued_seconds: float | None = None
    slot: int | None = None

    @property
    def flex(self) -> bool:
        """Whether it may cost less, because it yields to the rest."""
        # A stored request that is damaged keeps no claim from its run.
        return isinstance(self.request, dict) and self.request.get("service_tier") == FLEX


@dataclass(frozen=True, slots=True)
class Claims:
    """What one statement claimed.

    More may be there where another dispatcher was quicker with some (`raced`); more is there where some were
    `left_out` for their size, or `held_back`, since the last slots are kept for what is due. `granted` is for how many
    of each model there was a slot on the servers.
    """

    claims: list[Claim]
    raced: bool
    left_out: int = 0
    held_back: int = 0
    granted: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Settlement:
    """The final status of a claimed result; `size` is that of its answer in bytes, as it came."""

    id: UUID
    token: UUID
    status: Status
    outcome: Outcome
    server: str | None
    answer: SettledColumns
    error_code: str | None = None
    error_message: str | None = None
    attempt_spent: bool = True
    engine_stopped: bool = False
    gpu_seconds: float = 0.0
    cost: float | None = None
    # The rented host it ran on.
    host_id: UUID | None = None
    size: int = 0
    # Outputs of the task `infer` that no JSON shows.
    files: tuple[OutputFile, ...] = ()


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
    host_id: UUID | None = None
    # As `SettledColumns.provenance`.
    provenance: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What a renewal tells of a claim that is still ours."""

    cancel_requested: bool
    expired: bool
    streamed: bool = False
