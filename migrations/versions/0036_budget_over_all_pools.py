"""The budget over all pools is shown to people, beside those of the pools.

Revision ID: 0036
Revises: 0035
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("capacity_leader", sa.Column("budget", JSONB(), server_default="{}", nullable=False))


def downgrade() -> None:
    op.drop_column("capacity_leader", "budget")
