"""A host may fail for what was to run on it, which is not its machine's fault.

Revision ID: 0038
Revises: 0037
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.add_column(
            "hosts",
            sa.Column("machine_failed", sa.Boolean(), server_default="true", nullable=False),
            if_not_exists=True,
        )


def downgrade() -> None:
    op.drop_column("hosts", "machine_failed")
