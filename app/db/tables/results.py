"""Results, their attempts and what they say; a row of `results` is ticket, queue entry and history."""

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import UUID as UUIDType

from app.db.tables.base import Moment, metadata
from app.db.tables.declared import LARGE, columns_of


@dataclass(slots=True)
class ClaimedColumns:
    """What a ticket says that its run needs: set by the submit or the batch, given back by the claim."""

    id: Annotated[UUID, Column(UUIDType, primary_key=True)]
    context_id: Annotated[UUID, Column(UUIDType, ForeignKey("contexts.id"), nullable=False)]
    model: Annotated[str, Column(Text, nullable=False)]
    parameters: Annotated[dict[str, Any], Column(JSONB, nullable=False, info=LARGE)]
    _: dataclasses.KW_ONLY
    # `generate`, `embed` or `infer`: what is asked of the engine.
    task: Annotated[str, Column(Text, nullable=False, server_default="generate")] = "generate"
    owner_id: Annotated[int, Column(Integer, nullable=False, server_default="0")] = 0
    # Whether somebody follows the generation, so that its events are stored.
    streamed: Annotated[bool, Column(Boolean, nullable=False, server_default="false")] = False
    # Of the request that made it, as W3C Trace Context writes it; null where traces are off.
    trace_parent: Annotated[str | None, Column(Text)] = None
    # Of a request in OpenAI's shape: which kind of object answers it, and the request as it came.
    kind: Annotated[str | None, Column(Text)] = None
    request: Annotated[dict[str, Any] | None, Column(JSONB(none_as_null=True), info=LARGE)] = None


@dataclass(slots=True)
class SubmittedColumns(ClaimedColumns):
    """What a ticket says besides: set by the submit or the batch, and in every row that is read."""

    priority: Annotated[int, Column(SmallInteger, nullable=False, server_default="0")]
    # Order of service: created_at less priority times the ageing time, so that a low priority rises.
    rank: Annotated[datetime, Column(Moment, nullable=False, server_default=func.now())]
    created_at: Annotated[datetime, Column(Moment, nullable=False, server_default=func.now())]
    _: dataclasses.KW_ONLY
    expires_at: Annotated[datetime | None, Column(Moment)] = None
    client_reference: Annotated[str | None, Column(Text)] = None
    key_id: Annotated[UUID | None, Column(UUIDType)] = None
    retry_of: Annotated[UUID | None, Column(UUIDType)] = None
    # False for `store: false`: prompt, request and answer are removed once the answer was delivered, or could not be.
    kept: Annotated[bool, Column(Boolean, nullable=False, server_default="true")] = True
    # The conversation to which its input and output are still to be added.
    conversation_id: Annotated[UUID | None, Column(UUIDType)] = None
    # {"url", "events"}: whom to tell of the end.
    webhook: Annotated[dict[str, Any] | None, Column(JSONB(none_as_null=True))] = None
    # The servers that may run it: `server:NAME` or `kinds:KIND,KIND`, '' for any.
    wish: Annotated[str, Column(Text, nullable=False, server_default="")] = ""


@dataclass(slots=True)
class SettledColumns:
    """What an engine answered: set by the settle, and in every row that is read."""

    output: Annotated[str | None, Column(Text, info=LARGE)] = None
    # [{"index", "text", "finish_reason", "cumulative_logprob", "logprobs"}]
    outputs: Annotated[list[dict[str, Any]] | None, Column(JSONB(none_as_null=True), info=LARGE)] = None
    finish_reason: Annotated[str | None, Column(Text)] = None
    prompt_tokens: Annotated[int | None, Column(Integer)] = None
    completion_tokens: Annotated[int | None, Column(Integer)] = None
    # What the task `infer` came to: it has no text.
    answer: Annotated[dict[str, Any] | None, Column(JSONB(none_as_null=True), info=LARGE)] = None
    # {"server", "kind", "engine_version", "model_revision", "parameters"}: what made it, as far as that was told;
    # and "usage_estimated" where that is true.
    provenance: Annotated[dict[str, Any] | None, Column(JSONB(none_as_null=True))] = None


# Between two vacuums a claim passes the index entries of all that was settled, so one comes after each fiftieth of the
# table, instead of each fifth, and never leaves the indexes out because few pages are concerned. Postgres's default
# lets it write 40 MB/s, which takes more than a minute with a million results.
VACUUMED_OFTEN = {
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "1000",
    "vacuum_index_cleanup": "on",
    "autovacuum_vacuum_cost_limit": "2000",
}

results = Table(
    "results",
    metadata,
    *columns_of(SubmittedColumns),
    *columns_of(SettledColumns),
    # What follows is the queue's own: its statements name these one by one.
    Column("batch_id", UUIDType),
    Column("batch_line", Integer),
    Column("status", Text, nullable=False, server_default="pending"),
    # Backoff, lease and scheduled start all move this one column.
    Column("available_at", Moment, nullable=False, server_default=func.now()),
    Column("cancel_requested_at", Moment),
    Column("engine_stopped_at", Moment),
    Column("attempt_count", Integer, nullable=False, server_default="0"),
    Column("attempt_token", UUIDType),
    Column("attempt_started_at", Moment),
    Column("dispatcher", Text),
    Column("server", Text),
    Column("started_at", Moment),
    Column("completed_at", Moment),
    Column("error_code", Text),
    Column("error_message", Text),
    # Dollars, of all its runs; null where no server's price was known.
    Column("cost", Double),
    CheckConstraint("status IN ('pending', 'completed', 'failed')", name="status_known"),
    CheckConstraint("(status = 'pending') = (completed_at IS NULL)", name="final_has_an_end"),
    CheckConstraint("task IN ('generate', 'embed', 'infer')", name="task_known"),
    CheckConstraint(
        "status <> 'completed' OR (error_code IS NULL AND CASE task WHEN 'infer' THEN answer IS NOT NULL"
        " ELSE output IS NOT NULL AND finish_reason IS NOT NULL END)",
        name="completed_has_output",
    ),
    CheckConstraint(
        "status <> 'failed' OR (error_code IS NOT NULL AND error_message IS NOT NULL)",
        name="failed_has_error",
    ),
    CheckConstraint("status = 'pending' OR attempt_token IS NULL", name="final_holds_no_claim"),
    CheckConstraint("(attempt_token IS NULL) = (attempt_started_at IS NULL)", name="claim_has_a_start"),
    CheckConstraint("attempt_count >= 0", name="attempts_not_negative"),
    Index("results_claim", "model", "wish", "owner_id", "rank", "id", postgresql_where=text("status = 'pending'")),
    Index(
        "results_expiry",
        "expires_at",
        postgresql_where=text("status = 'pending' AND expires_at IS NOT NULL"),
    ),
    Index(
        "results_cancelling",
        "id",
        postgresql_where=text("status = 'pending' AND cancel_requested_at IS NOT NULL"),
    ),
    Index("results_by_owner", "owner_id", "id"),
    Index("results_by_status", "owner_id", "status", "id"),
    Index("results_by_model", "owner_id", "model", "id"),
    Index(
        "results_pending_by_key",
        "key_id",
        postgresql_where=text("status = 'pending' AND key_id IS NOT NULL"),
    ),
    Index("results_by_batch", "batch_id", "batch_line", postgresql_where=text("batch_id IS NOT NULL")),
    # What of a batch is left, and what of it failed: both counted without reading the rest.
    Index(
        "results_batch_progress",
        "batch_id",
        "status",
        postgresql_where=text("batch_id IS NOT NULL AND status <> 'completed'"),
    ),
    Index("results_by_context", "context_id", "id"),
    # Few fail, so they are found alone and cost the others nothing.
    Index("results_failed_by_model", "model", "owner_id", "id", postgresql_where=text("status = 'failed'")),
    Index("results_failed_by_context", "context_id", "id", postgresql_where=text("status = 'failed'")),
    Index(
        "results_by_client_reference",
        "owner_id",
        "client_reference",
        "id",
        postgresql_where=text("client_reference IS NOT NULL"),
    ),
    Index("results_by_conversation", "conversation_id", postgresql_where=text("conversation_id IS NOT NULL")),
    # In which they are made ready for searches.
    Index("results_by_end", "completed_at", "id", postgresql_where=text("completed_at IS NOT NULL")),
    # Those whose texts are still there.
    Index("results_unkept", "id", postgresql_where=text("NOT kept AND request IS NOT NULL")),
    # Room on each page, so that claims and renewals, which touch no index, stay on it.
    postgresql_with={"fillfactor": "80", **VACUUMED_OFTEN},
)

attempts = Table(
    "attempts",
    metadata,
    Column("result_id", UUIDType, ForeignKey("results.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("dispatcher", Text, nullable=False),
    Column("server", Text),
    Column("started_at", Moment, nullable=False),
    Column("ended_at", Moment, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    # This attempt's share of the time its server was busy.
    Column("gpu_seconds", Double),
    # Dollars; null where the server's price was not known.
    Column("cost", Double),
    # As that of a result.
    Column("provenance", JSONB),
    CheckConstraint(
        "outcome IN ('completed', 'failed', 'retried', 'cancelled', 'expired', 'lease_lost')",
        name="outcome_known",
    ),
)

# Outputs of the task `infer` that are binary or large; they go with their result.
output_files = Table(
    "output_files",
    metadata,
    Column("result_id", UUIDType, ForeignKey("results.id", ondelete="CASCADE"), primary_key=True),
    # Which response of a decoupled model, and which element of a tensor of BYTES; from 0 on.
    Column("response", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("element", Integer, primary_key=True, autoincrement=False),
    Column("media_type", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

# What a generation said so far, kept while somebody may follow it; see app/queue/events.py.
result_events = Table(
    "result_events",
    metadata,
    Column("result_id", UUIDType, primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    # [{"index", "text", "logprobs"}], one entry for each choice that went on; or tensors, as the answer has them.
    Column("choices", JSONB, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Index("result_events_age", "created_at"),
)
