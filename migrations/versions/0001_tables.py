"""The tables contexts, results, attempts and models, and the view history.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# One row an attempt, or one a result where none has ended yet: what people query as their history.
HISTORY_VIEW = """
CREATE VIEW history AS
SELECT
    r.id AS result_id,
    r.context_id,
    r.model,
    r.status,
    r.client_reference,
    r.priority,
    c.content AS prompt,
    c.metadata,
    r.output,
    r.finish_reason,
    r.parameters,
    r.prompt_tokens,
    r.completion_tokens,
    r.error_code,
    r.error_message,
    r.created_at,
    r.started_at,
    r.completed_at,
    r.started_at - r.created_at AS waited,
    r.completed_at - r.started_at AS ran,
    r.attempt_count,
    a.number AS attempt,
    a.server,
    a.outcome AS attempt_outcome,
    a.error_code AS attempt_error_code,
    a.started_at AS attempt_started_at,
    a.ended_at AS attempt_ended_at
FROM results r
JOIN contexts c ON c.id = r.context_id
LEFT JOIN attempts a ON a.result_id = r.id
"""


def upgrade() -> None:
    op.create_table(
        "contexts",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("content <> ''", name=op.f("contexts_content_not_empty")),
        sa.PrimaryKeyConstraint("id", name=op.f("contexts_pkey")),
    )
    op.create_table(
        "models",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("models_pkey")),
    )
    op.create_table(
        "results",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("context_id", sa.UUID(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("client_reference", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rank", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("available_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("engine_stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempt_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempt_token", sa.UUID(), nullable=True),
        sa.Column("attempt_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dispatcher", sa.Text(), nullable=True),
        sa.Column("server", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("output", sa.Text(), nullable=True),
        sa.Column("outputs", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.CheckConstraint("(status = 'pending') = (completed_at IS NULL)", name=op.f("results_final_has_an_end")),
        sa.CheckConstraint(
            "status <> 'completed' OR (output IS NOT NULL AND finish_reason IS NOT NULL AND error_code IS NULL)",
            name=op.f("results_completed_has_output"),
        ),
        sa.CheckConstraint(
            "status <> 'failed' OR (error_code IS NOT NULL AND error_message IS NOT NULL)",
            name=op.f("results_failed_has_error"),
        ),
        sa.CheckConstraint("status = 'pending' OR attempt_token IS NULL", name=op.f("results_final_holds_no_claim")),
        sa.CheckConstraint("status IN ('pending', 'completed', 'failed')", name=op.f("results_status_known")),
        sa.CheckConstraint(
            "(attempt_token IS NULL) = (attempt_started_at IS NULL)", name=op.f("results_claim_has_a_start")
        ),
        sa.CheckConstraint("attempt_count >= 0", name=op.f("results_attempts_not_negative")),
        sa.ForeignKeyConstraint(["context_id"], ["contexts.id"], name=op.f("results_context_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("results_pkey")),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "results_by_client_reference",
        "results",
        ["client_reference", "id"],
        unique=False,
        postgresql_where=sa.text("client_reference IS NOT NULL"),
    )
    op.create_index("results_by_context", "results", ["context_id", "id"], unique=False)
    op.create_index("results_by_model", "results", ["model", "id"], unique=False)
    op.create_index("results_by_status", "results", ["status", "id"], unique=False)
    op.create_index(
        "results_cancelling",
        "results",
        ["id"],
        unique=False,
        postgresql_where=sa.text("status = 'pending' AND cancel_requested_at IS NOT NULL"),
    )
    op.create_index(
        "results_claim",
        "results",
        ["model", "rank", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "results_expiry",
        "results",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending' AND expires_at IS NOT NULL"),
    )
    op.create_table(
        "attempts",
        sa.Column("result_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("dispatcher", sa.Text(), nullable=False),
        sa.Column("server", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('completed', 'failed', 'retried', 'cancelled', 'expired', 'lease_lost')",
            name=op.f("attempts_outcome_known"),
        ),
        sa.ForeignKeyConstraint(
            ["result_id"], ["results.id"], name=op.f("attempts_result_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("result_id", "number", name=op.f("attempts_pkey")),
    )
    op.execute(HISTORY_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW history")
    op.drop_table("attempts")
    op.drop_index(
        "results_expiry",
        table_name="results",
        postgresql_where=sa.text("status = 'pending' AND expires_at IS NOT NULL"),
    )
    op.drop_index("results_claim", table_name="results", postgresql_where=sa.text("status = 'pending'"))
    op.drop_index(
        "results_cancelling",
        table_name="results",
        postgresql_where=sa.text("status = 'pending' AND cancel_requested_at IS NOT NULL"),
    )
    op.drop_index("results_by_status", table_name="results")
    op.drop_index("results_by_model", table_name="results")
    op.drop_index("results_by_context", table_name="results")
    op.drop_index(
        "results_by_client_reference", table_name="results", postgresql_where=sa.text("client_reference IS NOT NULL")
    )
    op.drop_table("results")
    op.drop_table("models")
    op.drop_table("contexts")
