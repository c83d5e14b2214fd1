"""The newest log lines of every process; an owner's webhook deliveries as a list.

Revision ID: 0028
Revises: 0027
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import add_index

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    add_index("webhook_deliveries_by_owner", "webhook_deliveries", ["owner_id", "id"])
    op.create_table(
        "log_lines",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("level", sa.SmallInteger(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("logger", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("log_lines_pkey")),
    )
    op.create_index("log_lines_by_process", "log_lines", ["process", "id"])


def downgrade() -> None:
    op.drop_table("log_lines")
    op.drop_index("webhook_deliveries_by_owner", table_name="webhook_deliveries")
