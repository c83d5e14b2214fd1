"""The trace that a ticket belongs to.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.add_column("results", sa.Column("trace_parent", sa.Text(), nullable=True), if_not_exists=True)


def downgrade() -> None:
    op.drop_column("results", "trace_parent")
