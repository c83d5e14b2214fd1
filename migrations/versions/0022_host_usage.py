"""What tickets cost, and which host they used.

Revision ID: 0022
Revises: 0021
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import add_index, alone

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, column in (
        ("results", sa.Column("cost", sa.Double())),
        ("usage", sa.Column("host_id", sa.UUID())),
        ("servers", sa.Column("host_id", sa.UUID())),
    ):
        with alone():
            op.add_column(table, column, if_not_exists=True)
    add_index("usage_by_host", "usage", ["day"], where="host_id IS NOT NULL")


def downgrade() -> None:
    op.drop_index("usage_by_host", table_name="usage")
    for table, column in (("servers", "host_id"), ("usage", "host_id"), ("results", "cost")):
        op.drop_column(table, column)
