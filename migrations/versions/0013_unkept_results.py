"""Results whose texts are not kept.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import add_index, alone

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.add_column(
            "results", sa.Column("kept", sa.Boolean(), server_default="true", nullable=False), if_not_exists=True
        )
    add_index("results_unkept", "results", ["id"], where="NOT kept AND request IS NOT NULL")


def downgrade() -> None:
    op.drop_index("results_unkept", "results")
    op.drop_column("results", "kept")
