"""The tables. `results` is ticket, queue entry and history in one row; see docs/architecture.md."""

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s",
        "uq": "%(table_name)s_%(column_0_name)s_key",
    }
)

Moment = DateTime(timezone=True)

contexts = Table(
    "contexts",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("content", Text, nullable=False),
    Column("metadata", JSONB(none_as_null=True)),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    CheckConstraint("content <> ''", name="content_not_empty"),
)

results = Table(
    "results",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("context_id", UUID, ForeignKey("contexts.id"), nullable=False),
    Column("retry_of", UUID),
    Column("model", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("parameters", JSONB, nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("client_reference", Text),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("expires_at", Moment),
    # Order of service: created_at less priority times the ageing time, so that a low priority rises.
    Column("rank", Moment, nullable=False, server_default=func.now()),
    # Backoff, lease and scheduled start all move this one column.
    Column("available_at", Moment, nullable=False, server_default=func.now()),
    Column("cancel_requested_at", Moment),
    Column("engine_stopped_at", Moment),
    Column("attempt_count", Integer, nullable=False, server_default="0"),
    Column("attempt_token", UUID),
    Column("attempt_started_at", Moment),
    Column("dispatcher", Text),
    Column("server", Text),
    Column("started_at", Moment),
    Column("completed_at", Moment),
    Column("output", Text),
    Column("outputs", JSONB(none_as_null=True)),
    Column("finish_reason", Text),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("error_code", Text),
    Column("error_message", Text),
    CheckConstraint("status IN ('pending', 'completed', 'failed')", name="status_known"),
    CheckConstraint("(status = 'pending') = (completed_at IS NULL)", name="final_has_an_end"),
    CheckConstraint(
        "status <> 'completed' OR (output IS NOT NULL AND finish_reason IS NOT NULL AND error_code IS NULL)",
        name="completed_has_output",
    ),
    CheckConstraint(
        "status <> 'failed' OR (error_code IS NOT NULL AND error_message IS NOT NULL)",
        name="failed_has_error",
    ),
    CheckConstraint("status = 'pending' OR attempt_token IS NULL", name="final_holds_no_claim"),
    CheckConstraint("(attempt_token IS NULL) = (attempt_started_at IS NULL)", name="claim_has_a_start"),
    CheckConstraint("attempt_count >= 0", name="attempts_not_negative"),
    Index("results_claim", "model", "rank", "id", postgresql_where=text("status = 'pending'")),
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
    Index("results_by_status", "status", "id"),
    Index("results_by_model", "model", "id"),
    Index("results_by_context", "context_id", "id"),
    Index(
        "results_by_client_reference",
        "client_reference",
        "id",
        postgresql_where=text("client_reference IS NOT NULL"),
    ),
    # Room on each page, so that claims and renewals, which touch no index, stay on it.
    postgresql_with={"fillfactor": "80"},
)

attempts = Table(
    "attempts",
    metadata,
    Column("result_id", UUID, ForeignKey("results.id", ondelete="CASCADE"), primary_key=True),
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
    CheckConstraint(
        "outcome IN ('completed', 'failed', 'retried', 'cancelled', 'expired', 'lease_lost')",
        name="outcome_known",
    ),
)

# One row for each Idempotency-Key of the last day; `resource_id` is the context or result it made.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("resource_id", UUID, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Index("idempotency_keys_age", "created_at"),
)

models = Table(
    "models",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("version", Text, nullable=False),
    Column("first_seen_at", Moment, nullable=False, server_default=func.now()),
    Column("last_seen_at", Moment, nullable=False, server_default=func.now()),
)
