"""Files of batches that are written while their lines finish.

Revision ID: 0031
Revises: 0030
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.online import alone

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    written = sa.Column("written", postgresql.INT4MULTIRANGE(), server_default="{}", nullable=False)
    with alone():
        op.add_column("batches", written, if_not_exists=True)
        op.add_column("batches", sa.Column("tally", postgresql.JSONB()), if_not_exists=True)


def downgrade() -> None:
    op.drop_column("batches", "tally")
    op.drop_column("batches", "written")
