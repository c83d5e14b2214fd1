"""What was told of budgets, and webhooks that say it.

Revision ID: 0025
Revises: 0024
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.online import alone

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.add_column("webhook_deliveries", sa.Column("data", postgresql.JSONB()), if_not_exists=True)
    op.create_table(
        "budget_alerts",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("span", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("level", sa.SmallInteger(), nullable=False),
        sa.Column("most", sa.Double(), nullable=False),
        sa.Column("spent", sa.Double(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("pool", "span", "period", "level", "most", name=op.f("budget_alerts_pkey")),
    )


def downgrade() -> None:
    op.drop_table("budget_alerts")
    op.drop_column("webhook_deliveries", "data")
