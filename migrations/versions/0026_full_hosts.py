"""Hosts remember what they did while most of their slots were taken, which is what they can do.

Revision ID: 0026
Revises: 0025
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        for column in (
            sa.Column("full_seconds", sa.Double(), server_default="0", nullable=False),
            sa.Column("full_tokens", sa.BigInteger(), server_default="0", nullable=False),
            sa.Column("full_at", sa.DateTime(timezone=True), nullable=True),
        ):
            op.add_column("hosts", column, if_not_exists=True)


def downgrade() -> None:
    for column in ("full_at", "full_tokens", "full_seconds"):
        op.drop_column("hosts", column)
