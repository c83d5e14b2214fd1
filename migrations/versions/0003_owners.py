"""Owners and their keys, usage, stored events of a generation, webhooks.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.online import add_index, alone, replace_index

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


REPLACED = {
    "results_by_client_reference": (["owner_id", "client_reference", "id"], "client_reference IS NOT NULL"),
    "results_by_model": (["owner_id", "model", "id"], None),
    "results_by_status": (["owner_id", "status", "id"], None),
    "results_claim": (["model", "owner_id", "rank", "id"], "status = 'pending'"),
}


def upgrade() -> None:
    _add_columns()
    _add_indexes()
    op.create_table(
        "owners",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("weight", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("webhook_secret", sa.Text(), nullable=True),
        sa.Column("old_webhook_secret", sa.Text(), nullable=True),
        sa.Column("old_webhook_secret_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("weight > 0", name=op.f("owners_weight_positive")),
        sa.PrimaryKeyConstraint("id", name=op.f("owners_pkey")),
        sa.UniqueConstraint("name", name=op.f("owners_name_key")),
    )
    op.execute("INSERT INTO owners (id, name) VALUES (0, 'local')")
    op.create_table(
        "result_events",
        sa.Column("result_id", sa.UUID(), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("choices", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("result_id", "sequence", name=op.f("result_events_pkey")),
    )
    op.create_index("result_events_age", "result_events", ["created_at"], unique=False)
    op.create_table(
        "usage",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.UUID(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=True),
    )
    op.create_index("usage_by_owner", "usage", ["owner_id", "day"], unique=False)
    op.create_index("usage_by_day", "usage", ["day"], unique=False)
    op.create_table(
        "request_counts",
        sa.Column("key_id", sa.UUID(), nullable=False),
        sa.Column("second", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "second", name=op.f("request_counts_pkey")),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.UUID(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.UUID(), nullable=True),
        sa.Column("batch_id", sa.UUID(), nullable=True),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column(
            "host",
            sa.Text(),
            sa.Computed(
                r"""COALESCE("substring"(url, '^[a-z]+://(\[[^]]*\]|[^/:?#]+)'::text), ''::text)""", persisted=True
            ),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=True),
        sa.Column(
            "give_up_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now() + '72:00:00'::interval"),
            nullable=False,
        ),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_deliveries_pkey")),
    )
    op.create_index("webhook_deliveries_by_result", "webhook_deliveries", ["result_id"], unique=False)
    op.create_index(
        "webhook_deliveries_due",
        "webhook_deliveries",
        ["host", "due_at"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("pending_limit", sa.Integer(), nullable=True),
        sa.Column("tokens_per_day", sa.BigInteger(), nullable=True),
        sa.Column("webhook", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("api_keys_owner_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("api_keys_pkey")),
        sa.UniqueConstraint("secret_hash", name=op.f("api_keys_secret_hash_key")),
    )
    op.add_column(
        "idempotency_keys", sa.Column("owner_id", sa.Integer(), server_default="0", autoincrement=False, nullable=False)
    )
    op.drop_constraint("idempotency_keys_pkey", "idempotency_keys")
    op.create_primary_key("idempotency_keys_pkey", "idempotency_keys", ["owner_id", "key"])


def _add_columns() -> None:
    columns = {
        "attempts": (sa.Column("gpu_seconds", sa.Double(), nullable=True),),
        "contexts": (
            sa.Column("owner_id", sa.Integer(), server_default="0", nullable=False),
            sa.Column("messages", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        ),
        "results": (
            sa.Column("owner_id", sa.Integer(), server_default="0", nullable=False),
            sa.Column("key_id", sa.UUID(), nullable=True),
            sa.Column("kind", sa.Text(), nullable=True),
            sa.Column("request", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
            sa.Column("batch_id", sa.UUID(), nullable=True),
            sa.Column("batch_line", sa.Integer(), nullable=True),
            sa.Column("streamed", sa.Boolean(), server_default="false", nullable=False),
            sa.Column("webhook", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        ),
    }
    for table, added in columns.items():
        for column in added:
            with alone():
                op.add_column(table, column, if_not_exists=True)


def _add_indexes() -> None:
    add_index("contexts_by_owner", "contexts", ["owner_id", "id"])
    add_index("results_by_owner", "results", ["owner_id", "id"])
    add_index("results_by_batch", "results", ["batch_id", "batch_line"], where="batch_id IS NOT NULL")
    add_index("results_pending_by_key", "results", ["key_id"], where="status = 'pending' AND key_id IS NOT NULL")
    for name, (columns, where) in REPLACED.items():
        add_index(f"{name}_new", "results", columns, where=where)
        replace_index(name, f"{name}_new")


def downgrade() -> None:
    op.drop_index(
        "results_pending_by_key",
        table_name="results",
        postgresql_where=sa.text("status = 'pending' AND key_id IS NOT NULL"),
    )
    op.drop_index("results_by_owner", table_name="results")
    op.drop_index("results_by_batch", table_name="results", postgresql_where=sa.text("batch_id IS NOT NULL"))
    op.drop_index("results_claim", table_name="results", postgresql_where=sa.text("status = 'pending'"))
    op.create_index(
        op.f("results_claim"),
        "results",
        ["model", "rank", "id"],
        unique=False,
        postgresql_where="(status = 'pending'::text)",
    )
    op.drop_index("results_by_status", table_name="results")
    op.create_index(op.f("results_by_status"), "results", ["status", "id"], unique=False)
    op.drop_index("results_by_model", table_name="results")
    op.create_index(op.f("results_by_model"), "results", ["model", "id"], unique=False)
    op.drop_index(
        "results_by_client_reference", table_name="results", postgresql_where=sa.text("client_reference IS NOT NULL")
    )
    op.create_index(
        op.f("results_by_client_reference"),
        "results",
        ["client_reference", "id"],
        unique=False,
        postgresql_where="(client_reference IS NOT NULL)",
    )
    op.drop_column("results", "webhook")
    op.drop_column("results", "streamed")
    op.drop_column("results", "batch_line")
    op.drop_column("results", "batch_id")
    op.drop_column("results", "request")
    op.drop_column("results", "kind")
    op.drop_column("results", "key_id")
    op.drop_column("results", "owner_id")
    op.execute("DELETE FROM idempotency_keys WHERE owner_id <> 0")
    op.drop_constraint("idempotency_keys_pkey", "idempotency_keys")
    op.drop_column("idempotency_keys", "owner_id")
    op.create_primary_key("idempotency_keys_pkey", "idempotency_keys", ["key"])
    op.drop_index("contexts_by_owner", table_name="contexts")
    op.drop_column("contexts", "messages")
    op.drop_column("contexts", "owner_id")
    op.drop_column("attempts", "gpu_seconds")
    op.drop_table("api_keys")
    op.drop_index(
        "webhook_deliveries_due", table_name="webhook_deliveries", postgresql_where=sa.text("due_at IS NOT NULL")
    )
    op.drop_index("webhook_deliveries_by_result", table_name="webhook_deliveries")
    op.drop_table("webhook_deliveries")
    op.drop_table("request_counts")
    op.drop_index("usage_by_day", table_name="usage")
    op.drop_index("usage_by_owner", table_name="usage")
    op.drop_table("usage")
    op.drop_index("result_events_age", table_name="result_events")
    op.drop_table("result_events")
    op.drop_table("owners")
