"""Comparisons, and what each attempt cost.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.online import alone

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.add_column("attempts", sa.Column("cost", sa.Double()), if_not_exists=True)
    op.create_table(
        "comparisons",
        sa.Column("id", sa.UUID(), primary_key=True),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.UUID()),
        sa.Column("context_id", sa.UUID(), nullable=False),
        sa.Column("with_prompt", sa.Boolean(), nullable=False),
        sa.Column("result_ids", postgresql.ARRAY(sa.UUID()), nullable=False),
        sa.Column("models", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )
    op.create_index("comparisons_by_owner", "comparisons", ["owner_id", "id"])


def downgrade() -> None:
    op.drop_table("comparisons")
    op.drop_column("attempts", "cost")
