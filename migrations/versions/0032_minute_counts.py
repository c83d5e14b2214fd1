"""Tickets that ended, by the minute: usage says when and with which error, and a table keeps the sums.

Revision ID: 0032
Revises: 0031
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.add_column("usage", sa.Column("minute", sa.DateTime(timezone=True), nullable=True), if_not_exists=True)
        op.add_column("usage", sa.Column("error_code", sa.Text(), nullable=True), if_not_exists=True)
    op.create_table(
        "minute_counts",
        sa.Column("owner_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=False),
        sa.Column("tickets", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "minute", "model", "error_code", name=op.f("minute_counts_pkey")),
    )
    op.create_index("minute_counts_by_minute", "minute_counts", ["minute"])


def downgrade() -> None:
    op.drop_table("minute_counts")
    op.drop_column("usage", "error_code")
    op.drop_column("usage", "minute")
