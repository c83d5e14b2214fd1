"""Servers as rows, and the slots of each model on each.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "servers",
        sa.Column("id", sa.UUID(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("models", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("hourly_price", sa.Double(), nullable=True),
        sa.Column("prompt_token_price", sa.Double(), nullable=True),
        sa.Column("completion_token_price", sa.Double(), nullable=True),
        sa.Column("timeouts", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("credential", sa.Text(), nullable=True),
        sa.Column("wanted", sa.Text(), server_default="active", nullable=False),
        sa.Column("origin", sa.Text(), server_default="api", nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("servers_pkey")),
        sa.UniqueConstraint("address", name=op.f("servers_address_key")),
        sa.UniqueConstraint("name", name=op.f("servers_name_key")),
        sa.CheckConstraint("wanted IN ('active', 'draining', 'disabled')", name=op.f("servers_wanted_known")),
        sa.CheckConstraint("origin IN ('api', 'environment', 'file')", name=op.f("servers_origin_known")),
        sa.CheckConstraint("concurrency > 0", name=op.f("servers_concurrency_positive")),
    )
    op.create_table(
        "server_slots",
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("token", sa.UUID(), nullable=True),
        sa.Column("until", sa.DateTime(timezone=True), server_default="-infinity", nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("gpu_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("cost", sa.Double(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("server", "model", "number", name=op.f("server_slots_pkey")),
        postgresql_with={"fillfactor": "40"},
    )


def downgrade() -> None:
    op.drop_table("server_slots")
    op.drop_table("servers")
