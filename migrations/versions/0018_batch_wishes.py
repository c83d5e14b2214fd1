"""Batches that wish for servers.

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.add_column("batches", sa.Column("wish", sa.Text(), server_default="", nullable=False), if_not_exists=True)


def downgrade() -> None:
    op.drop_column("batches", "wish")
