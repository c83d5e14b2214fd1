"""The tables. `results` is ticket, queue entry and history in one row; see docs/architecture.md."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Date,
    DateTime,
    Double,
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

# Whom contexts, results, files and batches belong to; 0 is whoever calls without a key.
owners = Table(
    "owners",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("weight", SmallInteger, nullable=False, server_default="1"),
    # Signs the webhooks of this owner (Standard Webhooks); made on first use.
    Column("webhook_secret", Text),
    # The one before, which signs beside it for a while after a rotation.
    Column("old_webhook_secret", Text),
    Column("old_webhook_secret_until", Moment),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    CheckConstraint("weight > 0", name="weight_positive"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, ForeignKey("owners.id"), nullable=False),
    Column("name", String(200), nullable=False),
    # SHA-256 of the key: it is random, so a slow hash would add nothing.
    Column("secret_hash", LargeBinary, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("expires_at", Moment),
    Column("revoked_at", Moment),
    Column("requests_per_minute", Integer),
    Column("pending_limit", Integer),
    Column("tokens_per_day", BigInteger),
    Column("webhook", JSONB(none_as_null=True)),
    # Who uses it, for people.
    Column("person", String(200)),
    # Ids as in GET /v1/models, a model's own name standing for its adapters too; null allows all.
    Column("models", ARRAY(Text)),
    Column("tokens_per_month", BigInteger),
    Column("dollars_per_day", Double),
    Column("dollars_per_month", Double),
    # What the files of its owner may come to when it uploads one; null for the setting.
    Column("storage_bytes", BigInteger),
)

contexts = Table(
    "contexts",
    metadata,
    Column("id", UUID, primary_key=True),
    # No foreign key: each insert would lock the one row of its owner.
    Column("owner_id", Integer, nullable=False, server_default="0"),
    # The prompt as the engine gets it; for a chat, `messages` rendered with the model's template.
    Column("content", Text, nullable=False),
    Column("messages", JSONB(none_as_null=True)),
    Column("metadata", JSONB(none_as_null=True)),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    CheckConstraint("content <> ''", name="content_not_empty"),
    Index("contexts_by_owner", "owner_id", "id"),
)

results = Table(
    "results",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False, server_default="0"),
    Column("key_id", UUID),
    Column("context_id", UUID, ForeignKey("contexts.id"), nullable=False),
    Column("retry_of", UUID),
    # Of a request in OpenAI's shape: which kind of object answers it, and the request as it came.
    Column("kind", Text),
    Column("request", JSONB(none_as_null=True)),
    Column("batch_id", UUID),
    Column("batch_line", Integer),
    # Whether somebody follows the generation, so that its events are stored.
    Column("streamed", Boolean, nullable=False, server_default="false"),
    # {"url", "events"}: whom to tell of the end.
    Column("webhook", JSONB(none_as_null=True)),
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
    Index("results_claim", "model", "owner_id", "rank", "id", postgresql_where=text("status = 'pending'")),
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
    Index(
        "results_by_client_reference",
        "owner_id",
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
    # This attempt's share of the time its server was busy.
    Column("gpu_seconds", Double),
    CheckConstraint(
        "outcome IN ('completed', 'failed', 'retried', 'cancelled', 'expired', 'lease_lost')",
        name="outcome_known",
    ),
)

# One row for each Idempotency-Key of the last day; `resource_id` is what it made.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner_id", Integer, primary_key=True, autoincrement=False, server_default="0"),
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

# What a generation said so far, kept while somebody may follow it; see app/queue/events.py.
result_events = Table(
    "result_events",
    metadata,
    Column("result_id", UUID, primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    # [{"index", "text", "logprobs"}], one entry for each choice that went on.
    Column("choices", JSONB, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Index("result_events_age", "created_at"),
)

# Counts that add up: each settling statement appends a few rows, and the dispatcher merges those of a day.
usage = Table(
    "usage",
    metadata,
    Column("day", Date, nullable=False),
    Column("owner_id", Integer, nullable=False),
    Column("key_id", UUID),
    Column("model", Text, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("gpu_seconds", Double, nullable=False),
    # Dollars for those seconds whose server has a known price; null for none.
    Column("cost", Double),
    Index("usage_by_owner", "owner_id", "day"),
    Index("usage_by_day", "day"),
)

# Requests of limited keys by second (Unix time), added up over all API processes; kept for two minutes.
request_counts = Table(
    "request_counts",
    metadata,
    Column("key_id", UUID, primary_key=True),
    Column("second", BigInteger, primary_key=True, autoincrement=False),
    Column("requests", Integer, nullable=False),
)

URL_HOST = r"""COALESCE("substring"(url, '^[a-z]+://(\[[^]]*\]|[^/:?#]+)'::text), ''::text)"""

# Ends that somebody wants to hear of, written in the settling transaction, delivered by the dispatcher.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("owner_id", Integer, nullable=False),
    Column("result_id", UUID),
    Column("batch_id", UUID),
    Column("event", Text, nullable=False),
    Column("url", Text, nullable=False),
    # No host takes more than its share of the deliveries under way.
    Column("host", Text, Computed(URL_HOST, persisted=True), nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    # When to try next, or the end of the lease of whoever is trying; null once delivered or given up.
    Column("due_at", Moment, server_default=func.now()),
    Column("give_up_at", Moment, nullable=False, server_default=text("now() + '72:00:00'::interval")),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("delivered_at", Moment),
    Column("last_error", Text),
    Index("webhook_deliveries_due", "host", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    Index("webhook_deliveries_by_result", "result_id"),
)

# What batches read and write, whole within Postgres, so that any API process can serve it.
files = Table(
    "files",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("expires_at", Moment),
    # Who uploaded it, or made the batch that wrote it.
    Column("key_id", UUID),
    Index("files_by_owner", "owner_id", "id"),
    Index("files_expiry", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

file_chunks = Table(
    "file_chunks",
    metadata,
    Column("file_id", UUID, ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

# A batch's lines are results. Whoever works on it, to load or to finalize it, holds the lease under its token.
batches = Table(
    "batches",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("owner_id", Integer, nullable=False),
    Column("key_id", UUID),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", UUID, nullable=False),
    Column("metadata", JSONB(none_as_null=True)),
    Column("output_seconds", Integer),
    # {"url", "events"} of the key, as it was when the batch was made.
    Column("webhook", JSONB(none_as_null=True)),
    Column("status", Text, nullable=False, server_default="validating"),
    # {"total", "data": [{"line", "code", "message", "param"}]}: why it was refused.
    Column("errors", JSONB(none_as_null=True)),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("output_file_id", UUID),
    Column("error_file_id", UUID),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("expires_at", Moment, nullable=False),
    Column("in_progress_at", Moment),
    Column("finalizing_at", Moment),
    Column("completed_at", Moment),
    Column("failed_at", Moment),
    Column("expired_at", Moment),
    Column("cancelling_at", Moment),
    Column("cancelled_at", Moment),
    Column("lease_token", UUID),
    # Null once the batch is final.
    Column("lease_until", Moment, server_default=func.now()),
    Column("tries", Integer, nullable=False, server_default="0"),
    CheckConstraint(
        "CASE WHEN lease_until IS NULL THEN status IN ('failed', 'completed', 'expired', 'cancelled')"
        " ELSE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') END",
        name="status_known",
    ),
    Index("batches_by_owner", "owner_id", "id"),
    Index("batches_open", "id", postgresql_where=text("lease_until IS NOT NULL")),
)

# Who did what to keys, and to what another made. Triggers refuse every change; see migration 0005.
audit = Table(
    "audit",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("action", Text, nullable=False),
    Column("actor_key_id", UUID),
    # Who it was apart from a key: `api`, or the user of a command.
    Column("actor", Text, nullable=False),
    # Whose the subject is.
    Column("owner_id", Integer),
    Column("subject", Text, nullable=False),
    # Which key had made it.
    Column("subject_key_id", UUID),
    Column("details", JSONB(none_as_null=True)),
    Index("audit_age", "created_at"),
)

# Models of servers that are ready by their word but do not answer. A row outlasts its episode, for its `reloads`.
set_aside_models = Table(
    "set_aside_models",
    metadata,
    Column("server", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    # Null: it answers again.
    Column("since", Moment),
    Column("reason", Text, nullable=False),
    # Known to be dead, not only silent.
    Column("dead", Boolean, nullable=False),
    # When a dispatcher last said so: what none says any longer is not so.
    Column("seen_at", Moment, nullable=False),
    # What is done about it, a sentence.
    Column("note", Text, nullable=False, server_default=""),
    # How far a reload is; whose it is, and until when it holds without a renewal.
    Column("step", Text),
    Column("reloader", Text),
    Column("reload_until", Moment),
    # When the reloads of the last hour began.
    Column("reloads", ARRAY(Moment), nullable=False, server_default="{}"),
    CheckConstraint("step IN ('unload', 'load')", name="step_known"),
)
