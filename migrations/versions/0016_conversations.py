"""Conversations.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.online import add_index, alone

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.add_column("results", sa.Column("conversation_id", sa.UUID()), if_not_exists=True)
    add_index("results_by_conversation", "results", ["conversation_id"], where="conversation_id IS NOT NULL")
    op.create_table(
        "conversations",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.UUID()),
        sa.Column("metadata", postgresql.JSONB()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("conversations_pkey")),
    )
    op.create_index("conversations_age", "conversations", ["used_at"])
    op.create_table(
        "conversation_items",
        sa.Column("conversation_id", sa.UUID(), nullable=False),
        sa.Column("position", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("item", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name=op.f("conversation_items_conversation_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("conversation_id", "position", name=op.f("conversation_items_pkey")),
        sa.UniqueConstraint("conversation_id", "item_id", name=op.f("conversation_items_conversation_id_key")),
    )
    # Not compressed, so that what they come to is known without reading them.
    op.execute("ALTER TABLE conversation_items ALTER COLUMN item SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_table("conversation_items")
    op.drop_table("conversations")
    op.drop_index("results_by_conversation", "results")
    op.drop_column("results", "conversation_id")
